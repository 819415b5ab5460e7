"""Our models in lm-evaluation-harness."""

import json

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is in requirements-parity.txt")

from lm_eval import evaluator, tasks
from lm_eval.api.instance import Instance
from tiny_models import QUIET, gin_of, planned, texts

from experiments import evaluating, experiment, origins, running, writing
from experiments.configs import ConfigError
from experiments.harness import Harnessed, cut, generation
from research.generation.engine import Greedy, Sample
from research.generation.scoring import score

TASK = """
task: own
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: {kind}
test_split: test
doc_to_text: {text}
doc_to_target: "{{{{text}}}}"
"""
ROLLING = """
metric_list:
  - metric: bits_per_byte
  - metric: byte_perplexity
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harnessed")
    one = planned(texts(folder / "texts"))
    running.run(running.Job(one, gin_of(one), folder / "run"), console=QUIET)
    return folder / "run", one


def harnessed(run, **options):
    return Harnessed(writing.load(origins.opened(str(run), None)), rows=4, **options)


def requests(kind, *arguments):
    return [
        Instance(request_type=kind, doc={}, arguments=one, idx=index) for index, one in enumerate(arguments)
    ]


def simple(model, folder, name, text):
    (folder / f"{name}.yaml").write_text(text)
    manager = tasks.TaskManager(include_path=str(folder), include_defaults=False)
    found = evaluator.simple_evaluate(model=model, tasks=[name], task_manager=manager, bootstrap_iters=0)
    return found["results"][name]


@pytest.mark.filterwarnings("ignore")  # of the harness and of what it imports
def test_a_local_task_gives_our_own_likelihood(run, tmp_path):
    place, one = run
    text = experiment.dataset(one.data, None)
    file = tmp_path / "windows.jsonl"
    windows = text.windows[0]["test"]
    chosen = np.unique(np.linspace(0, len(windows) - 1, one.data.held_out).astype(int))
    lines = [{"text": text.tokenizer.decode(windows[i].ids)} for i in chosen.tolist()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = TASK.format(file=file, kind="loglikelihood_rolling", text='""') + ROLLING
    found = simple(harnessed(place, length=32), tmp_path, "own", task)
    origin = origins.opened(str(place), None)
    measuring, _ = evaluating.load(origin, [], [])
    own = evaluating.measure(
        origin, measuring.experiment, {"l": measuring.evaluations["likelihood"]}, None
    ).scores["l"]
    assert found["bits_per_byte,none"] == pytest.approx(own["bits_per_byte"], rel=1e-5)
    assert found["byte_perplexity,none"] == pytest.approx(2 ** own["bits_per_byte"], rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_local_task_of_choices_runs(run, tmp_path):
    model, given, choices = (
        harnessed(run[0]),
        ("one a", "one b", "four one", "seven six"),
        ("two", "six", "one"),
    )
    file = tmp_path / "choices.jsonl"
    file.write_text("".join(json.dumps({"given": one}) + "\n" for one in given))
    task = TASK.format(file=file, kind="multiple_choice", text='"{{given}}"').replace(
        'doc_to_target: "{{text}}"',
        f"doc_to_target: 0\ndoc_to_choice: {list(choices)}\nmetric_list:\n  - metric: acc\n",
    )
    encode = model.writer.tokenizer.encode
    pairs = [(encode(one), encode(f" {choice}")) for one in given for choice in choices]
    scores = score(model.writer.model, pairs, bos=1, pad=0).log_probability.reshape(len(given), -1)
    found = simple(model, tmp_path, "own", task)["acc,none"]
    assert found == np.mean(scores.argmax(-1) == 0)


def test_pairs_are_scored_as_ours_are_and_blanks_belong_to_what_follows(run):
    model = harnessed(run[0])
    encode = model.writer.tokenizer.encode
    asked = [("one two ", "three"), ("", "four"), ("five six", " seven")]
    found = model.loglikelihood(requests("loglikelihood", *asked))
    pairs = [("one two", " three"), ("", "four"), ("five six", " seven")]
    own = score(model.writer.model, [tuple(map(encode, pair)) for pair in pairs], bos=1, pad=0)
    np.testing.assert_allclose([nats for nats, _ in found], own.log_probability, rtol=1e-5)
    assert [greedy for _, greedy in found] == own.greedy.tolist()
    assert model.loglikelihood([]) == []


def test_a_long_context_is_cut_from_the_left_and_a_long_text_into_lines(run):
    model = harnessed(run[0], length=32)
    long = "one two three four five six seven " * 4
    (cut_short,), (end,) = (
        model.loglikelihood(requests("loglikelihood", (context, "eight")))
        for context in (long + "x", (long + "x")[-27:])
    )
    assert cut_short == pytest.approx(end)
    text = long[:70]
    (whole,) = model.loglikelihood_rolling(requests("loglikelihood_rolling", (text,)))
    parts = model.loglikelihood_rolling(
        requests("loglikelihood_rolling", (text[:32],), (text[32:64],), (text[64:],))
    )
    assert whole == pytest.approx(sum(parts), rel=1e-5)
    assert model.loglikelihood_rolling(requests("loglikelihood_rolling", ("",))) == [0.0]


def test_text_is_written_until_what_ends_it(run):
    model = harnessed(run[0])
    settings = {"until": ["e"], "max_gen_toks": 24}
    contexts = ["one two", "three", "four five six seven one", "six", "seven one"]
    free = model.generate_until(
        requests("generate_until", *((context, {"max_gen_toks": 24}) for context in contexts))
    )
    ended = model.generate_until(requests("generate_until", *((context, settings) for context in contexts)))
    assert ended == [text.partition("e")[0] for text in free]
    assert any("e" in text for text in free)
    alone = [
        model.generate_until(requests("generate_until", (context, {"max_gen_toks": 24})))[0]
        for context in contexts
    ]
    assert alone == free
    with pytest.raises(ConfigError, match="max_gen_toks = 2000"):
        model.generate_until(requests("generate_until", ("one", {"max_gen_toks": 2000})))


def test_settings_of_the_harness_are_read_or_refused():
    assert generation({}, 2).choice == Greedy()
    drawn = generation({"do_sample": True, "temperature": 0.5, "top_p": 0.9}, 2)
    assert drawn.choice == Sample()
    assert len(drawn.processors.processors) == 2
    assert generation({"do_sample": True, "temperature": 0.0}, 2).choice == Greedy()
    with pytest.raises(ConfigError, match="'num_beams' is unknown"):
        generation({"num_beams": 2}, 2)
    assert cut("one. two\n", ["\n", ". "]) == "one"
