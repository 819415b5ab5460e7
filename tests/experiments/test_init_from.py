"""Runs that start from parameters that are there already."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from tiny_models import LLAMA, MASKED, QUIET, STATES, VOCAB, command, gin_of, planned, published, texts

from experiments import code, convert, experiment, pretrained, running, writing
from experiments.configs import ConfigError
from experiments.pretrained import Parameters, Published
from research.attention.masks import Prefix
from research.data.corpora import Factbook
from research.data.layouts import Concatenate
from research.data.local import TextFiles
from research.data.objectives import CausalLM, Classification, MaskedLM
from research.data.pipeline import Data
from research.data.pretrained import FromFile
from research.data.tokenizers import Bytes
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
    convert.to_hub(pretrained.opened(str(folder / "run"), None), folder / "hub", None, QUIET)
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
    other = stack(dropout=0.1, attention_dropout=0.2, dtype="bfloat16", remat="full")
    prefix = dataclasses.replace(other, mask=Prefix())
    start = Parameters(place=str(folder / "hub"), differing=("DecoderConfig.mask",))
    found = named(experiment.started(dataclasses.replace(one, model=prefix, init_from=start), None))
    for path, leaf in same.items():
        np.testing.assert_array_equal(leaf, found[path])


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
        writing.load(pretrained.opened(str(folder / name), None)).texts(["one two"], keys, how, 1)
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
