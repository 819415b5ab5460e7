"""The page of samples: loops are what is coloured, text is escaped, and a run is asked as its evaluation says."""

import re

import numpy as np
from tiny_models import QUIET, command, gin_of, planned, texts

from experiments import running
from experiments.samples import marked
from research.analysis.samples_page import Sample, page
from research.data.tokenizers import Bytes

T = Bytes()


def ids(text):
    return np.asarray(T.encode(text), np.int32)


def test_the_phrase_at_the_end_is_marked_each_time_and_nothing_is_lost():
    texts = ["say it again and again and again and", "no loop here", "so it goes, it goes, it goes,"]
    found = list(marked([ids("once ")] * 3, [ids(text) for text in texts], T))
    assert [one.prompt for one in found] == ["once "] * 3
    assert [one.text + "".join(one.phrases) for one in found] == texts
    assert found[1].phrases == ()
    assert found[2].phrases[:2] == (" it goes,", " it goes,")
    first, second, *_ = found[0].phrases
    assert first == second
    assert len(first) == len(" and again")


def test_a_page_has_a_row_a_sample_and_escapes_what_is_written():
    sample = Sample(prompt="<b>", text="& so", phrases=("on ", "on ", "o"))
    found = page({"a <run>": {"0": [sample], "human": [Sample(prompt="p", text="t")]}}, title="T", note="N")
    assert "<h2>a &lt;run&gt;</h2>" in found
    assert (
        '<span class="prompt">&lt;b&gt;</span>&amp; so<mark>on </mark><mark>on </mark><mark>o</mark>' in found
    )
    assert len(re.findall("<tr><th scope=.row.>", found)) == 2


def test_control_characters_are_seen_and_newlines_kept():
    found = page({"run": {"0": [Sample(prompt="a\x00", text="b\nc")]}}, title="T", note="N")
    assert '<span class="prompt">a\u2400</span>b\nc' in found


def test_a_character_between_two_phrases_is_not_lost():
    (found,) = marked([ids("p")], [ids("xé yé yé y")], T)
    assert found.text + "".join(found.phrases) == "xé yé yé y"
    assert len(found.phrases) >= 2


def test_the_command_writes_what_runs_write(tmp_path):
    one = planned(texts(tmp_path / "texts"))
    running.run(running.Job(one, gin_of(one), tmp_path / "run"), console=QUIET)
    small = ("Repetition.length=8", "Repetition.temperatures=(0.0,0.5)", "Repetition.prompt=4")
    words = (f"--run_dir={tmp_path}/run", f"--out={tmp_path}/page.html", "--prompts=2")
    code, said, wrong = command("experiments.samples", *words, *(f"--gin_param={each}" for each in small))
    assert (code, wrong) == (0, "")
    assert said.strip().endswith("page.html")
    found = (tmp_path / "page.html").read_text()
    assert re.findall('<th scope="row">(.*?)</th>', found) == ["0", "0", "0.5", "0.5", "human", "human"]
    code, _, wrong = command("experiments.samples", *words, "--evaluation=likelihood")
    assert code != 0
    assert "--evaluation=likelihood: in configs/evaluations.gin, expected one of ['repetition']" in wrong
    code, _, wrong = command("experiments.samples", words[0], f"--out={tmp_path}/none/page.html")
    assert code != 0
    assert "page.html: expected a file in a folder that there is" in wrong
