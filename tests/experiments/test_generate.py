"""Text from a trained run, by the command line."""

import json
import subprocess
import sys

import jax
import pytest
import tokenizers as hf
from tiny_models import LLAMA, VOCAB
from tokenizers import decoders, models, pre_tokenizers

from experiments import configs, generate, writing
from research.data.pretrained import FromFile
from research.data.tokenizers import Bytes
from research.generation.engine import Generation
from research.generation.filters import Rerank
from research.generation.search import Beam


def command(*words, said=None):
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=configs.ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        input=said,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(
    scope="module", params=["prefix_lm", pytest.param("encoder_decoder_lm", marks=pytest.mark.slow)]
)
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    code, _, wrong = command(
        "experiments.train",
        f"--gin_file=configs/architecture/{request.param}.gin",
        "--gin_file=configs/scale/smoke.gin",
        "--gin_file=tests/experiments/library.gin",
        "--gin_param=train.steps=3",
        "--gin_param=Data.held_out=8",
        f"--run_dir={folder}",
    )
    assert code == 0, wrong
    return folder


def test_one_prompt_is_shown_as_it_is_written_and_many_are_records(trained, tmp_path):
    run = ("experiments.generate", f"--run_dir={trained}", "--tokens=12")
    code, said, wrong = command(*run, "--prompt=import os")
    assert code == 0, wrong
    assert said.startswith("import os")
    code, streamed, wrong = command(*run, "--n=2", said="import os\ndef f(\n")
    assert code == 0, wrong
    records = [json.loads(line) for line in streamed.splitlines()]
    assert {(one["index"], one["sample"]) for one in records} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    first = next(one for one in records if (one["index"], one["sample"]) == (0, 0))
    text = first["text"].replace("\r", "\n")  # as a pipe is read
    assert said == f"import os{text}\n"  # the same key, whatever runs beside it
    for one in records:
        assert one["log_probability"] == pytest.approx(sum(one["token_log_probabilities"]), abs=1e-3)
        assert 1 <= len(one["token_log_probabilities"]) <= 12


@pytest.mark.slow
def test_a_file_of_prompts_and_a_conversation_give_the_same_text(trained, tmp_path):
    run = ("experiments.generate", f"--run_dir={trained}", "--tokens=12", "--temperature=0")
    (tmp_path / "prompts.txt").write_text("import os\n")
    out = tmp_path / "out.jsonl"
    code, _, wrong = command(*run, f"--prompt_file={tmp_path / 'prompts.txt'}", f"--out={out}")
    assert code == 0, wrong
    (greedy,) = map(json.loads, out.read_text().splitlines())
    assert greedy["prompt"] == "import os"
    code, said, wrong = command(*run, "--interactive", said="import os\n\n")
    assert code == 0, wrong
    assert greedy["text"] in said


@pytest.mark.parametrize(
    "file", sorted(configs.ROOT.glob("configs/generation/*.gin")), ids=lambda file: file.stem
)
def test_a_shipped_way_to_write_is_built_and_differs_from_the_others(file):
    planned = configs.load(writing.generate, [str(file)])
    assert planned != writing.Writing()
    others = [other for other in file.parent.glob("*.gin") if other != file]
    assert planned not in [configs.load(writing.generate, [str(other)]) for other in others]


@pytest.mark.slow
def test_a_search_is_bound_by_gin_and_finds_what_flags_find(trained):
    run = ("experiments.generate", f"--run_dir={trained}", "--n=2", "--prompt=import os")
    gin = ("--gin_param=generate.how=@Beam()", "--gin_param=Beam.size=3")
    found = [command(*run, "--tokens=6", *words) for words in (gin, ("--beams=3",))]
    assert found[0] == found[1]
    records = [json.loads(line) for line in found[0][1].splitlines()]
    assert [one["sample"] for one in records] == [0, 1]
    assert records[0]["log_probability"] >= records[1]["log_probability"]


@pytest.mark.slow
def test_samples_are_cut_and_put_in_order_and_a_model_may_be_held_against_itself(trained):
    run = ("experiments.generate", f"--run_dir={trained}", "--prompt=import os")
    gin = ("--gin_file=configs/generation/noisy.gin", "--gin_param=Generation.tokens=12", "--n=3")
    cut = ("--gin_param=generate.cut=@CutRepeats()", "--gin_param=CutRepeats.phrase=3")
    code, said, wrong = command(*run, *gin, *cut)
    assert code == 0, wrong
    rerank, records = Rerank(penalty=1.0), [json.loads(line) for line in said.splitlines()]
    costs = [
        rerank.cost(
            one.get("uncut", one["text"]), one["log_probability"] / len(one["token_log_probabilities"])
        )
        for one in records
    ]
    assert costs == sorted(costs)
    assert {one["sample"] for one in records} == {0, 1, 2}
    code, said, wrong = command(*run, f"--amateur_dir={trained}", "--tokens=4", "--contrastive=0.5")
    assert (code, said) == (1, "")
    assert "compares the hidden states of one model" in wrong
    code, said, wrong = command(*run, f"--amateur_dir={trained}", "--tokens=4", "--amateur_strength=0.5")
    assert code == 0, wrong
    assert said.startswith("import os")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (("--prompt=a", "--beams=2", "--top_p=0.9"), "--top_p says nothing to --beams"),
        (("--prompt=a", "--contrastive=0.5", "--eta=0.01"), "--eta says nothing to --contrastive"),
        (
            ("--prompt=a", "--gin_file=configs/generation/beam.gin", "--top_k=4"),
            "expected one of the two ways",
        ),
        (("--prompt=a", "--beams=2", "--n=3"), "Beam finds 2 for a prompt"),
        (("--prompt=a", "--length_penalty=1"), "--length_penalty says nothing without --beams"),
        (("--prompt=a", "--amateur_strength=1"), "say nothing without --amateur_dir"),
        (("--prompt=a", "--gin_param=generate.how=@Beem()"), "did you mean 'Beam'"),
        (("--prompt=a", "--prompt_file=b"), "expected one of them"),
        (("--prompt=a", "--top_p=2"), "TopP.p = 2"),
        (("--prompt_file=nowhere.txt",), "nowhere.txt"),
    ],
)
def test_what_cannot_be_generated_is_one_line(trained, words, wrong):
    code, _, said = command("experiments.generate", f"--run_dir={trained}", "--tokens=2", *words)
    assert code == 1
    assert wrong in said
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1


def test_a_prompt_is_shown_once_the_text_has_begun(capsys):
    model = LLAMA.build(vocab=VOCAB, key=jax.random.key(0))
    short = writing.Writer(model, Bytes(), (8,))
    for how in (Generation(tokens=4), Beam(tokens=4, size=2)):
        with pytest.raises(ValueError, match="learned positions end at 8"):
            generate.shown(short, "a longer prompt", jax.random.key(0), writing.Writing(how=how))
        assert capsys.readouterr().out == ""
        whole = writing.Writer(model, Bytes(), ())
        generate.shown(whole, "a longer prompt", jax.random.key(0), writing.Writing(how=how))
        assert capsys.readouterr().out.startswith("a longer prompt")


@pytest.mark.parametrize("how", [Generation(tokens=4), Beam(tokens=4, size=2)])
def test_a_blank_before_the_first_new_word_is_shown(tmp_path, capsys, how):
    """Of a tokenizer all of whose pieces begin a word, and that shows no blank at the beginning of a text."""
    words = [(f"▁w{i}", 0.0) for i in range(VOCAB)]
    tokenizer = hf.Tokenizer(models.Unigram(words, unk_id=0))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    source = FromFile(path=str(tmp_path), bos_token="▁w1", eos_token="▁w2", pad_token="▁w0", mask_token="▁w2")
    model = LLAMA.build(vocab=VOCAB, key=jax.random.key(0))
    writer = writing.Writer(model, source.ready(()), ())
    generate.shown(writer, "w3 w4", jax.random.key(0), writing.Writing(how=how))
    assert capsys.readouterr().out.startswith("w3 w4 w")
    ((alone, *_),) = writer.texts([""], jax.random.key(0)[None], how, 1)
    assert alone.text.startswith("w")


def test_a_folder_without_a_run_is_one_line(tmp_path):
    code, _, said = command("experiments.generate", f"--run_dir={tmp_path}", "--prompt=a")
    assert code == 1
    assert (
        said == f"error: --run_dir={tmp_path}: no config.gin there; expected the folder of a training run\n"
    )
