"""Runs that start from parameters that are there already."""

import dataclasses
import io
import json
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console
from tiny_models import LLAMA, MASKED, QUIET, STATES, VOCAB, command, gin_of, planned, published, texts

from experiments import code, convert, evaluating, experiment, origins, pretrained, running, writing
from experiments.configs import ConfigError
from experiments.experiment import Experiment
from experiments.origins import Published
from experiments.pretrained import Parameters
from research.attention.masks import Prefix
from research.attention.recurrence import Convolution, MeanPooling, Recurrent
from research.data.corpora import Factbook
from research.data.layouts import Concatenate, InPlace
from research.data.local import JSONLines, TextFiles
from research.data.objectives import CausalLM, Classification, MaskedLM
from research.data.pipeline import Data
from research.data.pretrained import FromFile
from research.data.streams import Stream
from research.data.tokenizers import Bytes
from research.evaluation.likelihood import Likelihood
from research.generation.engine import Generation, Greedy
from research.interop.annalog import ANNALOG
from research.interop.architecture import Settings
from research.interop.hub import ARCHITECTURES, Checkpoint
from research.interop.weights import Arrays
from research.models.config import EmbeddingConfig
from research.models.paths import named
from research.training.loop import Plan
from research.training.optimizers import AdamW


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model that was trained, as a run and as it is published, and what its run has measured."""
    folder = tmp_path_factory.mktemp("start")
    one = planned(texts(folder / "texts"))
    job = running.Job(one, gin_of(one), folder / "run")
    result = running.run(job, console=QUIET)
    convert.to_hub(origins.opened(str(folder / "run"), None), folder / "hub", None, QUIET)
    return folder, one, result


def tuned(one, start, **changes):
    return dataclasses.replace(one, init_from=Parameters(place=str(start)), **changes)


def trained(one, folder, **options):
    return running.run(running.Job(one, gin_of(one), folder, **options), console=QUIET)


def test_a_run_goes_on_exactly_from_the_held_out_loss_of_what_it_starts_from(place, tmp_path):
    folder, one, before = place
    for start in (folder / "run", folder / "hub"):
        again = tuned(one, start)
        params = experiment.started(again, None)
        functions = experiment.trainer(again, VOCAB)
        text = experiment.dataset(again.data, None)
        assert functions.evaluate(params, text.held_out("test")) == before["metrics"]["loss"]
        state = functions.initial(jax.random.key(5), again.numbers, params=params)
        assert int(state.step) == 0
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.optimizer))
    frozen = tuned(one, folder / "hub", optimizer=AdamW(learning_rate=1e-12), steps=1)
    assert trained(frozen, tmp_path / "run")["metrics"]["loss"] == pytest.approx(
        before["metrics"]["loss"], abs=1e-6
    )


def test_the_key_knows_the_parameters_and_not_where_they_are(place, tmp_path):
    folder, one, _ = place
    shutil.copytree(folder / "hub", tmp_path / "copy")
    other = published(tmp_path / "other", seed=1)
    keys = [
        experiment.key(tuned(one, start), None)
        for start in (folder / "run", folder / "hub", tmp_path / "copy", other)
    ]
    drawn = experiment.key(one, None)
    assert keys[0] == keys[1] == keys[2]
    assert len({keys[0], keys[3], drawn}) == 3
    assert experiment.design(tuned(one, other), None) == experiment.design(tuned(one, other, seed=3), None)


def test_a_tokenizer_s_files_count_by_what_is_in_them(place, tmp_path):
    folder, one, _ = place
    shutil.copytree(folder / "hub", tmp_path / "copy")

    def key(path):
        data = dataclasses.replace(one.data, tokenizer=FromFile(path=str(path)))
        return experiment.key(dataclasses.replace(one, data=data), None)

    before = key(folder / "hub")
    assert key(tmp_path / "copy") == before
    file = tmp_path / "copy/tokenizer.json"
    file.write_text(file.read_text().replace("<mask>", "<hidden>"))
    experiment.dataset.cache_clear()
    assert key(tmp_path / "copy") != before


def test_only_runs_that_start_there_depend_on_the_code_that_reads_it(place):
    folder, one, _ = place
    for planned_, reads in ((one, False), (tuned(one, folder / "hub"), True)):
        found = code.modules({code.ROOT, *code._classes(planned_)})
        assert ("research.interop.hub" in found) == reads


def test_the_record_says_what_a_run_started_from_and_a_replay_starts_there(place, tmp_path):
    folder, one, _ = place
    again = tuned(one, folder / "hub")
    result = trained(again, tmp_path / "run", replayed=True)
    start = {"place": str(folder / "hub"), "fingerprint": again.init_from.fingerprint(None)}
    assert result["data"]["init_from"] == start
    assert json.loads((tmp_path / "run/run.json").read_text())["data"]["init_from"] == start
    first = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    drawn = trained(one, tmp_path / "drawn", replayed=True)
    assert result["replay"]["losses"][0] < drawn["replay"]["losses"][0] - 0.01
    assert first["loss"] < drawn["replay"]["losses"][0]


@pytest.mark.slow
def test_a_run_that_is_resumed_is_the_run_that_was_not_stopped(place, tmp_path):
    folder, one, _ = place
    again = tuned(one, folder / "run", plan=Plan(checkpoint_every=2))
    whole = trained(again, tmp_path / "run")
    (tmp_path / "run/result.json").unlink()
    shutil.rmtree(tmp_path / "run/checkpoints/4")
    assert trained(again, tmp_path / "run")["metrics"] == whole["metrics"]


@pytest.mark.slow
def test_members_of_an_ensemble_start_there_too(place, tmp_path):
    folder, one, _ = place
    members = [tuned(one, folder / "hub", seed=seed) for seed in (1, 2)]
    jobs = [running.Job(each, gin_of(each), tmp_path / f"{each.seed}") for each in members]
    together = running.run_all(jobs, console=QUIET)
    for each, result in zip(members, together, strict=True):
        alone = trained(each, tmp_path / f"alone {each.seed}")
        assert result["metrics"]["loss"] == pytest.approx(alone["metrics"]["loss"], rel=1e-5)
    assert together[0]["metrics"]["loss"] != together[1]["metrics"]["loss"]


def test_what_gin_files_do_not_say_is_as_at_the_place(place, tmp_path):
    folder, one, _ = place
    changes = ["Data.corpus=@Factbook()", "train.steps=7"]
    found, config = pretrained.tuning(str(folder / "run"), [], changes, None)
    start = Parameters(place=str(folder / "run"))
    data = dataclasses.replace(one.data, corpus=Factbook())
    assert found == dataclasses.replace(one, data=data, steps=7, init_from=start)
    assert "TextFiles" not in config
    (tmp_path / "config.gin").write_text(config)
    assert experiment.load([str(tmp_path / "config.gin")])[0] == found
    published, _ = pretrained.tuning(str(folder / "hub"), [], ["StackConfig.dropout=0.1"], None)
    assert published.model == stack(dropout=0.1)
    assert published.data.tokenizer == FromFile(path=str(folder / "hub"))
    with pytest.raises(ConfigError, match=r"Window\.w is used by nothing"):
        pretrained.tuning(str(folder / "run"), [], ["Window.w=3"], None)


def stack(**changes):
    return dataclasses.replace(LLAMA, stack=dataclasses.replace(LLAMA.stack, **changes))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (stack(layers=3), "StackConfig.layers = 3, but the parameters"),
        (stack(epsilon=1e-5), "StackConfig.epsilon = 1e-05, but the parameters"),
        (dataclasses.replace(LLAMA, mask=Prefix()), "DecoderConfig.mask = Prefix()"),
        (dataclasses.replace(LLAMA, embedding=EmbeddingConfig(rows=320, scale=1.0)), "set it to 288"),
    ],
)
def test_another_model_is_refused_with_what_differs(place, model, said, tmp_path):
    folder, one, _ = place
    with pytest.raises(ConfigError) as raised:
        trained(tuned(one, folder / "hub", model=model), tmp_path / "run")
    assert said in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_dropout_and_how_it_is_computed_may_differ_and_what_is_said_to(place):
    folder, one, _ = place
    same = named(experiment.started(tuned(one, folder / "hub"), None))
    other = stack(dropout=0.1, attention_dropout=0.2, input_noise=5.0, dtype="bfloat16", remat="full")
    prefix = dataclasses.replace(other, mask=Prefix())
    start = Parameters(place=str(folder / "hub"), differing=("DecoderConfig.mask",))
    found = named(experiment.started(dataclasses.replace(one, model=prefix, init_from=start), None))
    for path, leaf in same.items():
        np.testing.assert_array_equal(leaf, found[path])


def test_what_a_memory_learns_to_compress_with_is_drawn_where_there_was_no_memory(place):
    folder, one, _ = place
    memory = Recurrent(length=8, compression=Convolution(length=4, rate=2))
    model = dataclasses.replace(one.model, stack=dataclasses.replace(one.model.stack, memory=memory))
    start = Parameters(place=str(folder / "hub"), differing=("StackConfig.memory",))
    rows = dataclasses.replace(one.data, layout=Stream())
    planned = dataclasses.replace(one, model=model, data=rows, init_from=start)
    tokenizer = experiment.dataset(planned.data, None).tokenizer
    said = start.check(model, tokenizer, None)
    assert said.endswith("compress/... drawn anew: the checkpoint has no memory that learns to compress")
    theirs = named(experiment.started(tuned(one, folder / "hub"), None))
    given = experiment.started(planned, None)
    assert named(given).keys() == theirs.keys()
    functions = experiment.trainer(planned, tokenizer.vocab_size)
    found = named(functions.initial(jax.random.key(3), planned.numbers, params=given).params)
    assert {path.split("/")[-2] for path in found.keys() - theirs.keys()} == {"compress"}
    for path, leaf in theirs.items():
        np.testing.assert_array_equal(leaf, found[path])
    plain = dataclasses.replace(memory, compression=MeanPooling(length=4, rate=2))
    mean = dataclasses.replace(model, stack=dataclasses.replace(model.stack, memory=plain))
    assert start.check(mean, tokenizer, None) is None


def test_shapes_may_not_differ_whatever_is_said_to(place):
    folder, one, _ = place
    start = Parameters(place=str(folder / "hub"), differing=("StackConfig.hidden", "StackConfig.layers"))
    wrong = dataclasses.replace(one, model=stack(hidden=64, layers=2), init_from=start)
    with pytest.raises(
        ValueError, match=r"mlp/inner/up/kernel is \[2, 32, 48\], expected \[2, 32, 64\]"
    ) as raised:
        experiment.started(wrong, None)
    assert len(raised.value.lines) == 3


def test_another_tokenizer_is_refused_and_one_with_more_ids_gets_rows(place):
    folder, one, _ = place
    tokenizer = FromFile(path=str(folder / "hub"), sentinels=28)
    (folder / "words").mkdir()
    (folder / "words/vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\none\ntwo\n")
    start = Parameters(place=str(folder / "hub"))
    with pytest.raises(ConfigError, match="ids that stand for other text"):
        start.check(LLAMA, FromFile(path=str(folder / "words")).ready(()), None)
    start.check(LLAMA, tokenizer.ready(()), None)
    more = Bytes(sentinels=40)
    grown = dataclasses.replace(LLAMA, embedding=dataclasses.replace(LLAMA.embedding, rows=None))
    table = start.params(grown, more, None)["embedding"]["table"]
    before = start.params(LLAMA, Bytes(), None)["embedding"]["table"]
    assert table.shape == (more.vocab_size, 32)
    np.testing.assert_array_equal(table[:VOCAB], before)
    np.testing.assert_allclose(table[VOCAB:], np.tile(np.mean(before, 0), (12, 1)), atol=1e-7)


def test_text_is_the_same_from_a_run_and_from_what_it_was_exported_as(place):
    folder, _, _ = place
    how, keys = Generation(tokens=8, choice=Greedy()), jax.random.split(jax.random.key(0), 1)
    said = [
        writing.load(origins.opened(str(folder / name), None)).texts(["one two"], keys, how, 1)
        for name in ("run", "hub")
    ]
    assert said[0][0][0].text == said[1][0][0].text
    assert said[0][0][0].log_probability == pytest.approx(said[1][0][0].log_probability, abs=1e-5)


def test_a_model_without_a_head_of_tokens_is_tuned_to_classes_alone(tmp_path):
    states = published(tmp_path / "states", STATES, architecture="bert")
    with pytest.raises(ConfigError, match="published without a head of tokens") as raised:
        pretrained.tuning(str(states), [], [], None)
    assert len(str(raised.value).splitlines()) == 1
    classes = [
        "Data.objective=@Classification()",
        "Classification.labels=('a', 'b')",
        "EncoderConfig.classes=2",
        "Data.window=16",
    ]
    found, _ = pretrained.tuning(str(states), [], classes, None)
    assert found.data.objective == Classification(labels=("a", "b"))
    masked = published(tmp_path / "masked", MASKED, architecture="bert")
    assert pretrained.tuning(str(masked), [], [], None)[0].data.objective == MaskedLM()


UNTIED = dataclasses.replace(MASKED, tied_embeddings=False)
HEADS = {"no head": STATES, "head of tokens": MASKED, "table of its own": UNTIED}
ANEW = "head/... drawn anew: the checkpoint has no classes"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Lines of two classes, each of its own words."""
    rng, words = np.random.default_rng(0), {"low": ["one", "two", "three"], "high": ["six", "seven", "eight"]}
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [{"text": " ".join(rng.choice(words[label], 5)), "label": label} for label in [*words] * 40]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return JSONLines(pattern=str(path), inputs="text", target="label")


def telling(corpus, start, config, **changes):
    """An experiment that tells two classes from parameters that are there."""
    data = Data(
        corpus=corpus,
        objective=Classification(labels=("low", "high")),
        layout=InPlace(),
        window=48,
        batch=8,
        held_out=8,
        test=0.2,
    )
    model = dataclasses.replace(config, classes=2)
    one = Experiment(model=model, data=data, optimizer=AdamW(learning_rate=3e-3), steps=30)
    return dataclasses.replace(one, init_from=Parameters(place=str(start)), **changes)


@pytest.mark.parametrize("head", HEADS)
def test_the_head_of_classes_and_only_that_is_drawn_from_the_seed(head, rows, tmp_path):
    hub = published(tmp_path / "hub", HEADS[head], architecture="bert")
    one = telling(rows, hub, HEADS[head])
    convert.to_run(origins.opened(str(hub), None), tmp_path / "run", QUIET)
    again = telling(rows, tmp_path / "run", HEADS[head])
    theirs, functions = named(origins.opened(str(hub), None).read()), experiment.trainer(one, VOCAB)
    heads = []
    for each in (one, again, dataclasses.replace(one, seed=1)):
        key, params = jax.random.key(each.seed), experiment.started(each, None)
        assert "head" not in params
        found = named(functions.initial(key, each.numbers, params=params).params)
        drawn = named(functions.initial(key, each.numbers).params)
        assert found.keys() == drawn.keys()
        for path, leaf in found.items():
            np.testing.assert_array_equal(leaf, (drawn if path.startswith("head/") else theirs)[path])
        heads.append(found["head/kernel"])
    np.testing.assert_array_equal(heads[0], heads[1])
    assert np.all(heads[0] != heads[2])


def test_settings_that_only_tokens_are_scored_by_do_not_count(rows, tmp_path):
    hub = published(tmp_path / "hub", UNTIED, architecture="bert")
    plain = dataclasses.replace(STATES, pooler=False)
    assert (
        named(experiment.started(telling(rows, hub, plain), None)).keys()
        == named(experiment.started(telling(rows, hub, UNTIED), None)).keys()
    )


def test_a_tuning_to_classes_learns_says_what_is_drawn_and_resumes_as_it_was(rows, tmp_path):
    hub = published(tmp_path / "hub", STATES, architecture="bert")
    one = telling(rows, hub, STATES, plan=Plan(log_every=1, checkpoint_every=15))

    def run(folder):
        said = io.StringIO()
        result = running.run(running.Job(one, gin_of(one), folder), console=Console(file=said, width=500))
        return result["metrics"], said.getvalue()

    whole, said = run(tmp_path / "run")
    assert said.count(f"init_from {hub}: {ANEW}") == 1
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    (tmp_path / "run/result.json").unlink()
    shutil.rmtree(tmp_path / "run/checkpoints/30")
    resumed, said = run(tmp_path / "run")
    assert resumed == whole
    assert "resumed at step 15" in said
    assert ANEW not in said

    tuned = origins.opened(str(tmp_path / "run"), None)
    here = Parameters(place=str(tmp_path / "run"))
    three = dataclasses.replace(tuned.model, classes=3)
    with pytest.raises(
        ConfigError, match=r"EncoderConfig\.classes = 3, .* of a model with 2; change it"
    ) as raised:
        here.check(three, tuned.tokenizer(), None)
    assert len(str(raised.value).splitlines()) == 1
    with pytest.raises(ConfigError, match=r"EncoderConfig\.classes = None, .* of a model with 2"):
        here.check(STATES, tuned.tokenizer(), None)
    assert here.check(tuned.model, tuned.tokenizer(), None) is None
    assert evaluating.measure(tuned, tuned.planned, {"likelihood": Likelihood()}, None).scores


def test_what_else_differs_beside_the_head_of_classes_is_refused(rows, tmp_path):
    hub = published(tmp_path / "hub", STATES, architecture="bert")
    deeper = dataclasses.replace(STATES, stack=dataclasses.replace(STATES.stack, layers=3))
    unpooled = dataclasses.replace(STATES, pooler=False)
    for config, said in ((deeper, "StackConfig.layers = 3"), (unpooled, "EncoderConfig.pooler = False")):
        with pytest.raises(ConfigError, match=f"{said}, but the parameters in") as raised:
            experiment.started(telling(rows, hub, config), None)
        assert len(str(raised.value).splitlines()) == 1


def test_classes_that_nothing_was_tuned_to_are_not_measured(rows, tmp_path):
    hub = published(tmp_path / "hub", STATES, architecture="bert")
    with pytest.raises(ConfigError, match="no head of classes; expected a run that was tuned") as raised:
        evaluating.measure(origins.opened(str(hub), None), telling(rows, hub, STATES), {}, None)
    assert len(str(raised.value).splitlines()) == 1


def test_a_converted_run_is_refused_what_it_was_converted_from_is(tmp_path):
    states = published(tmp_path / "states", STATES, architecture="bert")
    convert.to_run(origins.opened(str(states), None), tmp_path / "run", QUIET)
    origin = origins.opened(str(tmp_path / "run"), None)
    with pytest.raises(ConfigError, match="run: published without a head of tokens") as raised:
        pretrained.tuning(str(tmp_path / "run"), [], [], None)
    assert len(str(raised.value).splitlines()) == 1
    with pytest.raises(ConfigError, match="run: published without a head of tokens"):
        evaluating.measure(origin, origin.planned, {}, None)
    with pytest.raises(ConfigError, match="an Encoder has no next token"):
        writing.load(origin)
    masked = published(tmp_path / "masked", MASKED, architecture="bert")
    convert.to_run(origins.opened(str(masked), None), tmp_path / "tokens", QUIET)
    assert pretrained.tuning(str(tmp_path / "tokens"), [], [], None)[0].data.objective == MaskedLM()
    record = json.loads((tmp_path / "tokens/run.json").read_text())
    (tmp_path / "tokens/run.json").write_text(json.dumps(record | {"language": "SMILES"}))
    with pytest.raises(ConfigError, match="bind a corpus of SMILES"):
        pretrained.tuning(str(tmp_path / "tokens"), [], [], None)


def described(name, values):
    """A published model of which only the description is there."""
    one = ARCHITECTURES.get(name, ANNALOG)
    checkpoint = Checkpoint(one.model(Settings(values, "config.json")), one, Arrays({}, name))
    return Published(name, checkpoint, None)


def test_smiles_are_not_measured_on_the_factbook():
    origin = described("annalog", {"vocab_size": 59})
    data = Data(corpus=Factbook(), objective=CausalLM(), layout=Concatenate(), tokenizer=Bytes())
    with pytest.raises(ConfigError, match="bind a corpus of SMILES") as raised:
        pretrained.fits(origin, data)
    assert len(str(raised.value).splitlines()) == 1
    pretrained.fits(origin, dataclasses.replace(data, corpus=TextFiles(pattern="*.smi")))


CHATGLM = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "inner_hidden_size": 48}
GLM = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "max_sequence_length": 16}


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("bert", {"architectures": ["BertModel"]}, "bert: an Encoder has no next token; expected a decoder"),
        ("chatglm", CHATGLM | {"vocab_size": 23}, "chatglm: its tokens have two coordinates each"),
        ("glm-infilling", GLM | {"vocab_size": 23}, "glm-infilling: its tokens have two coordinates each"),
    ],
)
def test_what_no_prompt_can_be_given_is_refused_before_its_weights_are_read(name, values, said):
    with pytest.raises(ConfigError) as raised:
        writing.load(described(name, values))
    assert str(raised.value).startswith(said)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.slow
def test_the_command_lines_take_a_place(place, tmp_path):
    folder, one, before = place
    (tmp_path / "own.gin").write_text(gin_of(dataclasses.replace(one, steps=1)))
    train = ("experiments.train", f"--gin_file={tmp_path / 'own.gin'}", f"--init_from={folder / 'hub'}")
    code, said, wrong = command(*train, "--dry_run")
    assert code == 0, wrong
    assert f"starts from {folder / 'hub'}" in said.replace("\n", "")
    code, said, wrong = command(*train, f"--run_dir={tmp_path / 'run'}")
    assert code == 0, wrong
    code, said, wrong = command(*train, f"--run_dir={tmp_path / 'wrong'}", "--gin_param=StackConfig.layers=3")
    assert code == 1
    assert len(wrong.splitlines()) == 1
    assert "StackConfig.layers = 3" in wrong
    code, said, wrong = command(
        "experiments.generate", f"--init_from={folder / 'hub'}", "--prompt=one", "--tokens=4"
    )
    assert code == 0, wrong
    code, said, wrong = command("experiments.generate", "--prompt=one")
    assert (code, len(wrong.splitlines())) == (1, 1)
    assert "expected one of them" in wrong
