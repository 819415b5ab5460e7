"""Data through the configs and command lines of users: every family with every objective, tasks, hard examples."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import configs, experiment
from research.attention.masks import Full
from research.data import arithmetic, curation, layouts, objectives, synthetic
from research.data.corpora import StandardLibrary
from research.data.documents import Document, Record
from research.data.streams import Stream
from research.data.weighting import HardExamples

FAMILIES = ("causal", "prefix", "encoder_decoder", "encoder")
OBJECTIVES = sorted(path.stem for path in configs.ROOT.glob("configs/objective/*.gin"))
TASKS = {"seq2seq", "chat"}  # they need records
IN_PLACE = {"masked_lm"}
NOT_FOR_PAIRS = {"causal_lm", "causal_lm_targets", "chat"}  # nothing is given to the encoder


@dataclasses.dataclass(frozen=True)
class Prose:
    """Free text that needs no download, and is read at once."""

    def documents(self, data_dir=None):
        return tuple(Document(f"{i:02}", f"{i} is a number of its own. " * 20) for i in range(60))


@dataclasses.dataclass(frozen=True)
class Sums:
    """Records that need no download."""

    def documents(self, data_dir=None):
        return tuple(Record.pair(f"{i:04}", f"{i}+{i}=", "even" if i % 3 else "odd") for i in range(300))


def load(*files, bindings=()):
    return experiment.load(
        [f"configs/{file}.gin" for file in ("base", *files, "scale/smoke")], list(bindings)
    )[0]


def with_data(planned, **changes):
    return dataclasses.replace(planned, data=dataclasses.replace(planned.data, **changes))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_on_every_objective_that_it_can_express(family, objective):
    planned = load(f"family/{family}", f"objective/{objective}")
    corpus = Sums() if objective in TASKS else Prose()
    expressible = (objective in IN_PLACE) == (family == "encoder")
    if family == "encoder_decoder":
        expressible = expressible and objective not in NOT_FOR_PAIRS
    planned = with_data(planned, corpus=corpus, batch=2, window=64)
    if not expressible:
        with pytest.raises(ValueError, match=r"set Data\.") as caught:
            planned.data.load()
        assert "\n" not in str(caught.value)
        return
    data = planned.data.load()
    batch = next(data.training(0))
    assert batch.weights.sum() > 0
    functions = experiment.trainer(planned, data.tokenizer.vocab_size)
    total, weight = jax.eval_shape(
        functions.loss, jax.eval_shape(functions.initial, jax.random.key(0)).params, batch
    )
    assert (total.shape, weight.shape) == ((), ())


@pytest.mark.parametrize("task", sorted(path.stem for path in configs.ROOT.glob("configs/data/*.gin")))
def test_every_shipped_corpus_builds(task):
    family = "encoder_decoder" if task in ("phonemes", "translation") else "prefix"
    objective = "objective/prefix_lm" if family == "prefix" else "objective/seq2seq"
    files = [
        "configs/base.gin",
        f"configs/family/{family}.gin",
        f"configs/{objective}.gin",
        "configs/scale/smoke.gin",
    ]
    planned, text = experiment.load([*files, f"configs/data/{task}.gin"])
    assert planned.data.corpus is not None
    assert "Data.corpus" in text


def test_an_encoder_tells_classes_by_a_head_and_a_generator_by_text():
    task = objectives.Classification(labels=("even", "odd"))
    encoder = load("family/encoder", "objective/masked_lm")
    data = dataclasses.replace(encoder.data, corpus=Sums(), objective=task, batch=8, window=32)
    with pytest.raises(ValueError, match=r"EncoderConfig\.classes = None"):
        dataclasses.replace(encoder, data=data)
    model = dataclasses.replace(encoder.model, classes=2)
    encoder = dataclasses.replace(encoder, model=model, data=data)
    with pytest.raises(ValueError, match=r"EncoderConfig\.classes = 2"):
        load("family/encoder", "objective/masked_lm", bindings=["EncoderConfig.classes=2"])
    text = data.load()
    functions = experiment.trainer(encoder, text.tokenizer.vocab_size)
    state, batches = functions.initial(jax.random.key(0), encoder.numbers), text.training(0)
    for _ in range(3):
        batch = next(batches)
        assert functions.model(state.params)(batch).shape == (8, 34, 2)  # BOS, 32 tokens, EOS
        state, metrics = functions.step(state, batch)
    assert metrics["weight"] == 8
    assert 0.1 < metrics["loss"] < 3


def test_learned_positions_of_a_stream_are_refused():
    bindings = ["Data.layout=@Stream()", "Data.evaluation=None"]
    assert load("family/causal", "objective/causal_lm", bindings=bindings).data.layout == Stream()
    learned = ["StackConfig.positions=@Learned()", "Learned.length=4096"]
    with pytest.raises(ValueError, match="run on without an end"):
        load("family/causal", "objective/causal_lm", bindings=[*bindings, *learned])


@pytest.mark.slow
def test_a_run_folder_of_other_data_is_refused(tmp_path):
    (tmp_path / "mails").mkdir()
    for i in range(60):
        (tmp_path / "mails" / f"{i}.txt").write_text(f"{i} " * 100)
    own = (f"--gin_param=TextFiles.pattern='{tmp_path}/mails/*.txt'", "--gin_param=Data.corpus=@TextFiles()")
    small = ("--gin_param=Data.batch=2", "--gin_param=Data.held_out=2")
    words = (*TRAIN, *TINY, *own, *small, f"--run_dir={tmp_path}/run")
    assert command(*words).returncode == 0
    assert "is finished" in command(*words).stdout
    (tmp_path / "mails" / "1.txt").write_text("something else " * 40)
    done = command(*words)
    assert done.returncode == 1
    assert "read data" in done.stderr.splitlines()[-1]


def test_a_mask_that_shows_the_targets_is_refused():
    planned = load("family/prefix", "objective/prefix_lm")
    with pytest.raises(ValueError, match="lets a token see the targets that it predicts"):
        dataclasses.replace(planned, model=dataclasses.replace(planned.model, mask=Full()))
    encoder = load("family/encoder", "objective/masked_lm")
    with pytest.raises(ValueError, match="lets a token see the targets that it predicts"):
        with_data(encoder, layout=layouts.Concatenate(), objective=objectives.CausalLM())


def command(*words, timeout=300, **environment):
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=configs.ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
    )


TRAIN = (
    "experiments.train",
    "--gin_file=configs/base.gin",
    "--gin_file=configs/family/prefix.gin",
    "--gin_file=configs/objective/prefix_lm.gin",
    "--gin_file=configs/scale/smoke.gin",
)
TINY = ("--gin_param=StackConfig.width=16", "--gin_param=StackConfig.layers=1", "--gin_param=train.steps=6")


def test_a_dry_run_of_a_synthetic_task_shows_it():
    done = command(*TRAIN, "--gin_file=configs/data/addition.gin", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "labels with weight: " in done.stdout
    assert "+" in done.stdout.split("target: ")[1]


@pytest.mark.slow
def test_workers_make_the_same_run_as_a_thread_and_hard_examples_resume(tmp_path):
    corpus = (
        "--gin_file=configs/data/addition.gin",
        "--gin_param=Data.examples=64",
        "--gin_param=Data.batch=8",
    )
    hard = ("--gin_param=Data.hard=@HardExamples()", "--gin_param=HardExamples.every=2")
    small = (
        "--gin_param=HardExamples.pool=16",
        "--gin_param=HardExamples.kept=4",
        "--gin_param=HardExamples.share=0.5",
    )
    log = (
        "--gin_param=Plan.log_every=1",
        "--gin_param=Plan.checkpoint_every=2",
        "--gin_param=Data.held_out=8",
    )

    def losses(folder, *more):
        done = command(*TRAIN, *corpus, *TINY, *hard, *small, *log, f"--run_dir={tmp_path / folder}", *more)
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]

    alone = losses("thread")
    assert losses("workers", "--gin_param=Plan.workers=2") == alone
    # A run whose later checkpoints are gone goes on from the one before, mined windows and all, now with workers.
    folder = tmp_path / "thread"
    (folder / "result.json").unlink()
    for step in (4, 6):
        subprocess.run(["rm", "-r", str(folder / "checkpoints" / str(step))], check=True)
    assert losses("thread", "--gin_param=Plan.workers=2") == alone


def test_hard_examples_take_their_share_of_a_batch():
    planned = load("family/causal", "objective/seq2seq")
    hard = HardExamples(share=0.5, every=1, pool=8, kept=2)
    data = dataclasses.replace(planned.data, corpus=Sums(), batch=8, window=32, hard=hard).load()
    batches, plain = data.training(0), data.training(0)
    batches.mined([3, 5])
    row = {id: data.rows(0, [id])[0].target.ids[0].tolist() for id in (3, 5)}
    batch, before = next(batches), next(plain)
    assert batch.target.ids[:4].tolist() == [row[3], row[5], row[3], row[5]]
    assert (batch.target.ids[4:] == before.target.ids[4:]).all()
    state = batches.get_state()
    again = data.training(0)
    again.set_state(json.loads(json.dumps(state)))
    assert (next(again).target.ids == next(batches).target.ids).all()


def test_row_losses_are_the_loss_of_each_row():
    planned = load("family/causal", "objective/seq2seq")
    data = dataclasses.replace(planned.data, corpus=Sums(), batch=4, window=32).load()
    functions = experiment.trainer(planned, data.tokenizer.vocab_size)
    params = functions.initial(jax.random.key(0)).params
    batch = data.rows(0, [0, 1, 2])[0]
    losses = np.asarray(functions.row_losses(params, batch))
    assert losses[3] == 0  # padding
    for i in range(3):
        one = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], batch)
        np.testing.assert_allclose(losses[i], functions.evaluate(params, [one]), rtol=1e-5)


def test_weights_of_windows_come_from_a_file(tmp_path):
    planned = load("family/causal", "objective/seq2seq")
    data = dataclasses.replace(planned.data, corpus=Sums(), batch=4, window=32)
    count = len(data.load().windows[0]["train"])
    np.save(tmp_path / "weights.npy", np.arange(count) + 1.0)
    weighted = dataclasses.replace(data, weights=str(tmp_path / "weights.npy")).load()
    draws = weighted.draws(0).first(4)[:, 1]
    batch = next(weighted.training(0))
    np.testing.assert_allclose(batch.weights.max(1), (draws + 1) / ((count + 1) / 2), rtol=1e-5)
    assert weighted.fingerprint != data.load().fingerprint
    np.save(tmp_path / "weights.npy", np.ones(count + 1))
    with pytest.raises(ValueError, match=f"a weight for each of {count} training windows"):
        dataclasses.replace(data, weights=str(tmp_path / "weights.npy")).load()


def test_curated_corpora_and_tasks_are_bound_by_name():
    planned = load(
        "family/causal",
        "objective/causal_lm",
        bindings=[
            "Data.corpus=@Deduplicated()",
            "Deduplicated.corpus=@StandardLibrary()",
            "Deduplicated.threshold=0.8",
        ],
    )
    assert planned.data.corpus == curation.Deduplicated(corpus=StandardLibrary(), threshold=0.8)
    task = load(
        "family/causal", "objective/seq2seq", bindings=["Data.corpus=@Addition()", "Addition.digits=2"]
    )
    assert task.data.corpus == arithmetic.Addition(digits=2)
    task = load("family/causal", "objective/seq2seq", bindings=["Data.corpus=@Rearrangement()"])
    assert task.data.corpus == synthetic.Rearrangement()
