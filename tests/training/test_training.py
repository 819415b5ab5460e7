"""Steps, optimizers, losses, and a run that is killed."""

import contextlib
import dataclasses
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from rich.console import Console
from test_checkpoints import mounted

from experiments import configs, experiment, machine, running
from research.attention.masks import Slots
from research.attention.positions import T5Bias
from research.batch import Batch, Tokens
from research.models.config import BlockSpec, StackConfig
from research.models.families import DecoderConfig
from research.models.paths import path_of
from research.training import loop, losses, optimizers
from research.training.checkpoints import CheckpointError, Keep
from research.training.step import Trainer

VOCAB = 40
SLOW = pytest.mark.slow
CONFIG = DecoderConfig(stack=StackConfig(layers=3, width=16, heads=2))


def batch(rows=4, length=6, seed=0):
    ids = np.random.default_rng(seed).integers(0, VOCAB, (rows, length + 1)).astype(np.int32)
    weights = np.random.default_rng(seed + 1).uniform(size=(rows, length)).astype(np.float32)
    return Batch(Tokens(ids[:, :-1], Slots.arange(length, (rows,))), ids[:, 1:], weights)


def trainer(optimizer, config=CONFIG):
    return Trainer(config, vocab=VOCAB, optimizer=optimizer, steps=10)


def test_the_loss_is_the_weighted_mean_whatever_the_chunk(monkeypatch):
    functions = trainer(optimizers.SGD())
    state, one = functions.initial(jax.random.key(0)), batch()
    logits = functions.model(state.params)(one)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, one.labels)
    for size in (losses.LOGITS["cpu"], 9 * VOCAB, VOCAB):
        monkeypatch.setitem(losses.LOGITS, "cpu", size)
        total, weight = functions.loss(state.params, one)
        np.testing.assert_allclose(total, (each * one.weights).sum(), rtol=1e-5)
        np.testing.assert_allclose(weight, one.weights.sum(), rtol=1e-6)


@pytest.mark.parametrize(
    "optimizer",
    [
        optimizers.AdamW(),
        pytest.param(optimizers.Lion(), marks=SLOW),
        pytest.param(optimizers.SGD(), marks=SLOW),
        pytest.param(optimizers.Adafactor(), marks=SLOW),
        pytest.param(optimizers.Muon(learning_rate=1e-3), marks=SLOW),  # its iteration amplifies rounding
    ],
    ids=lambda o: type(o).__name__,
)
def test_one_step_of_scanned_layers_is_one_step_of_unrolled_layers(optimizer):
    """A pattern as long as the stack keeps every layer's parameters apart: nothing is scanned or stacked."""
    spread = dataclasses.replace(
        CONFIG, stack=dataclasses.replace(CONFIG.stack, pattern=(BlockSpec(),) * CONFIG.stack.layers)
    )
    after = []
    for config in (CONFIG, spread):
        functions = trainer(optimizer, config)
        state, _ = functions.step(functions.initial(jax.random.key(0)), batch())
        after.append(state.params["stack"]["blocks"])
    for layer in range(CONFIG.stack.layers):
        scanned = jax.tree.map(lambda leaf, layer=layer: leaf[layer], after[0][0])
        unrolled = jax.tree.map(lambda leaf: leaf[0], after[1][layer])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), scanned, unrolled)


def test_weight_decay_goes_by_path():
    params = trainer(optimizers.AdamW()).initial(jax.random.key(0)).params
    paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    decayed = {path for path in paths if optimizers.re.search(optimizers.DECAYED, path)}
    assert {path.rsplit("/", 1)[-1] for path in decayed} == {"kernel", "table"}
    assert all("norm" in path for path in set(paths) - decayed)


@pytest.mark.parametrize(
    ("schedule", "end"),
    [(optimizers.Constant(), 1.0), (optimizers.Cosine(final=0.1), 0.1), (optimizers.Linear(final=0.0), 0.0)],
)
def test_schedules_rise_to_the_peak_and_end_where_they_say(schedule, end):
    rate = schedule.build(1.0, 100)
    rates = [float(rate(step)) for step in range(101)]
    assert max(rates) == pytest.approx(1.0)
    assert rates[0] > 0
    assert rates[100] == pytest.approx(end, abs=1e-6)


def test_dropout_differs_between_steps_and_is_off_in_evaluation():
    config = dataclasses.replace(CONFIG, stack=dataclasses.replace(CONFIG.stack, dropout=0.5))
    functions = trainer(optimizers.SGD(learning_rate=1e-12), config)
    state, seen = functions.initial(jax.random.key(0)), []
    held_out = functions.evaluate(state.params, [batch()])
    for _ in range(2):
        state, metrics = functions.step(state, batch())
        seen.append(float(metrics["loss"]))
    assert seen[0] != seen[1]
    assert functions.evaluate(state.params, [batch()]) == pytest.approx(held_out, rel=1e-6)


def test_evaluation_ignores_padding_batches_and_refuses_to_report_on_nothing():
    functions = trainer(optimizers.SGD())
    params, one = functions.initial(jax.random.key(0)).params, batch()
    empty = dataclasses.replace(one, weights=np.zeros_like(one.weights))
    assert functions.evaluate(params, [one, empty]) == pytest.approx(functions.evaluate(params, [one]))
    with pytest.raises(ValueError, match="no batch has a target"):
        functions.evaluate(params, [empty])


@pytest.mark.parametrize(
    ("named", "precision"), [("float32", "HIGHEST"), ("tensorfloat32", "HIGH"), ("bfloat16", "DEFAULT")]
)
def test_every_product_of_a_step_has_the_precision_that_was_asked_for(named, precision):
    """Rotary angles are turned at the highest one whatever it is, so the model has none."""
    config = dataclasses.replace(CONFIG, stack=dataclasses.replace(CONFIG.stack, positions=T5Bias()))
    functions = trainer(optimizers.AdamW(), config)
    state = jax.eval_shape(functions.initial, jax.random.key(0))
    with machine.surroundings(SimpleNamespace(matmul_precision=named), None):
        traced = str(jax.make_jaxpr(functions.update)(state, batch()))
    assert traced.count("dot_general[") > 10
    assert set(re.findall(r"precision=\(?(?:Precision\.)?(\w+)", traced)) == {precision}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is glibc's")
@pytest.mark.parametrize(("keep", "named"), [("1", "kept"), ("0", "system")])
def test_memory_is_kept_as_the_record_of_a_run_says(keep, named):
    """Half a gigabyte that was freed is still the process's, or the system's."""
    code = (
        "import os, pathlib, numpy as np; from experiments import start; start.process()\n"
        "held = np.ones(2**26); del held\n"
        "pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])\n"
        "print(start.settings()['allocator'], pages * os.sysconf('SC_PAGE_SIZE'))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=configs.ROOT,
        env={**os.environ, "RESEARCH_KEEP_MEMORY": keep},
        capture_output=True,
        text=True,
    )
    allocator, resident = said.stdout.split()
    assert allocator == named
    assert (int(resident) > 2**29) == (named == "kept")


def test_a_cpu_takes_one_program_at_a_time():
    """How much memory that saves depends on what else the machine does; see docs/training.md."""
    code = (
        "import jax; from experiments import start; start.process()\n"
        "print(jax.config.values['jax_cpu_enable_async_dispatch'])"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=configs.ROOT, capture_output=True, text=True)
    assert said.stdout == "False\n", said.stderr


def test_the_peak_of_a_cpu_is_that_of_all_processes(monkeypatch):
    monkeypatch.setattr(machine.hardware, "measured_roof", lambda: 1e9)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert machine.peak_flops(None) == 2e9


CORPORA = {
    "files": "pipeline.Data.corpus = @local.TextFiles()\nlocal.TextFiles.pattern = '{}/old/*.txt'\n",
    "mixture": (
        "pipeline.Data.corpus = @mixing.Mixture()\n"
        "mixing.Mixture.parts = (@new/mixing.Part(), @old/mixing.Part())\n"
        "new/mixing.Part.corpus = @new/local.TextFiles()\n"
        "new/local.TextFiles.pattern = '{}/new/*.txt'\n"
        "new/mixing.Part.name = 'new'\n"
        "old/mixing.Part.corpus = @old/local.TextFiles()\n"
        "old/local.TextFiles.pattern = '{}/old/*.txt'\n"
        "old/mixing.Part.name = 'old'\n"
        "old/mixing.Part.weight = 0.3\n"
        "new/mixing.Part.weight = 0.7\n"
    ),
}


def configured(texts, corpus="files"):
    """A gin file of 600 steps on a few files, which are written too."""
    for number, name in enumerate(["old", "new"] * 40):
        (texts / name).mkdir(exist_ok=True)
        words = np.random.default_rng(number).choice(["red", "green", "blue", "one", "two", "three"], 150)
        (texts / name / f"{number}.txt").write_text(" ".join(words))
    path = texts / "files.gin"
    path.write_text(
        "from __gin__ import dynamic_registration\n"
        "from experiments import experiment\n"
        "from research.data import local\n"
        + ("from research.data import mixing\n" if corpus == "mixture" else "")
        + "from research.data import pipeline\n"
        "from research.models import config\n"
        "from research.training import loop\n"
        + CORPORA[corpus].replace("{}", str(texts))
        + "pipeline.Data.held_out = 16\n"
        "pipeline.Data.batch = 4\n"
        "pipeline.Data.window = 64\n"
        "config.StackConfig.dropout = 0.1\n"
        "experiment.train.steps = 600\n"
        "loop.Plan.checkpoint_every = 50\n"
        "loop.Plan.log_every = 25\n"
        "loop.Plan.evaluate_every = 300\n"
    )
    return ["configs/architecture/prefix_lm.gin", "configs/scale/smoke.gin", str(path)]


def run(folder, *bindings, texts=None, corpus="files", wait=True):
    """Train in a process of its own."""
    words = [
        *(sys.executable, "-m", "experiments.train", f"--run_dir={folder}"),
        *(f"--gin_file={path}" for path in configured(texts or folder.parent, corpus)),
        *(f"--gin_param={binding}" for binding in bindings),
    ]
    process = subprocess.Popen(words, cwd=configs.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if wait:
        out, _ = process.communicate(timeout=240)
        return process.returncode, out.decode()
    return process


def reached(process, path):
    """Wait until the run has written it."""
    deadline = time.monotonic() + 200
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists()


def lines(folder):
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = {"tokens_per_second", "utilisation"}
    return [{name: value for name, value in line.items() if name not in timed} for line in read]


@pytest.mark.parametrize(
    ("number", "corpus"),
    [
        pytest.param(signal.SIGKILL, "files", marks=SLOW),
        pytest.param(signal.SIGTERM, "files", marks=SLOW),
        pytest.param(signal.SIGKILL, "mixture", marks=SLOW),
    ],
)
def test_a_run_that_is_stopped_and_resumed_equals_one_that_is_not(tmp_path, number, corpus):
    code, said = run(tmp_path / "whole", corpus=corpus)
    assert code == 0, said
    whole = lines(tmp_path / "whole")
    assert [line["step"] for line in whole if "validation_loss" in line] == [300]
    assert ("validation_new_loss" in whole[12]) == (corpus == "mixture")
    process = run(tmp_path / "stopped", corpus=corpus, wait=False)
    reached(process, tmp_path / "stopped" / "checkpoints" / "50")
    os.kill(process.pid, number)
    said, _ = process.communicate(timeout=60)
    assert not (tmp_path / "stopped" / "result.json").exists()
    status = json.loads((tmp_path / "stopped" / "run.json").read_text())["status"]
    if number == signal.SIGTERM:
        assert (process.returncode, status) == (130, "interrupted")
        assert b"the same command goes on from there" in said
    else:
        assert (process.returncode, status) == (-signal.SIGKILL, "running")
    code, said = run(tmp_path / "stopped", corpus=corpus)
    assert code == 0, said
    assert "resumed at step" in said
    assert lines(tmp_path / "stopped") == whole
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "stopped")]
    assert results[0]["metrics"] == results[1]["metrics"]

    code, said = run(tmp_path / "stopped", "train.seed=1", corpus=corpus)
    assert code == 1
    assert "holds another experiment" in said.splitlines()[-1]
    assert "seed = 1" in said.splitlines()[-1]


@SLOW
def test_a_full_disk_ends_a_run_in_one_line_and_loses_nothing_that_was_written(tmp_path):
    """The disk is full from a step on, then at a start, then there is room."""

    def failed(code, said):
        assert code == 1, said
        (line,) = [line for line in said.splitlines() if line.startswith("error")]
        assert line.startswith(f"error: cannot {'save step' if 'save step' in line else f'write {folder}'}")
        assert "No space left on device" in line
        assert "make room there" in line
        assert str(folder) in line
        assert "Traceback" not in said
        assert not list(folder.glob("*.tmp"))
        for path, content in written.items():
            assert path.read_bytes().startswith(content)

    with mounted(tmp_path / "disk", "size=8m") as disk:
        folder = disk / "run"
        process = run(folder, texts=tmp_path, wait=False)
        reached(process, folder / "checkpoints" / "50")
        process.send_signal(signal.SIGSTOP)
        with (disk / "other").open("wb", buffering=0) as other, contextlib.suppress(OSError):
            while True:
                other.write(bytes(4096))
        written = {folder / name: (folder / name).read_bytes() for name in ("config.gin", "metrics.jsonl")}
        logged = lines(folder)
        process.send_signal(signal.SIGCONT)
        said, _ = process.communicate(timeout=100)
        failed(process.returncode, said.decode())
        failed(*run(folder, texts=tmp_path))
        (disk / "other").unlink()
        code, said = run(folder, texts=tmp_path)
        assert code == 0, said
        assert "resumed at step" in said
        assert [line["step"] for line in lines(folder) if "loss" in line] == list(range(25, 601, 25))
        assert lines(folder)[: len(logged)] == logged
        assert json.loads((folder / "run.json").read_text())["status"] == "done"


def job(tmp_path, *bindings, name="run", **changes):
    planned, config = experiment.load(configured(tmp_path), bindings)
    return running.Job(dataclasses.replace(planned, **changes), config, tmp_path / name, name)


@pytest.mark.parametrize(
    ("plan", "keep", "wrong"),
    [
        (
            {"checkpoint_every": 5},
            Keep(best=1),
            "no checkpoint is both evaluated and saved before step 20: set Plan",
        ),
        (
            {"evaluate_every": 4, "checkpoint_every": 5},
            Keep(best=1),
            "Plan.checkpoint_every = 5 so that they meet",
        ),
        pytest.param(
            {"evaluate_every": 5, "checkpoint_every": 5},
            Keep(best=1, metric="los"),
            r"Keep.metric = 'los': expected one of \['validation_bits_per_byte', 'validation_loss'\]",
            marks=SLOW,
        ),
    ],
)
def test_a_best_checkpoint_that_there_would_never_be_is_refused(tmp_path, plan, keep, wrong):
    one = job(tmp_path, steps=20, plan=loop.Plan(**plan), keep=keep)
    with pytest.raises(ValueError, match=wrong):
        running.run(one, console=Console(quiet=True))


@SLOW
def test_a_member_of_an_ensemble_that_cannot_begin_ends_nobody_else(tmp_path):
    jobs = [job(tmp_path, name=f"run-{seed}", seed=seed, steps=4) for seed in range(3)]
    jobs[1].folder.mkdir()
    (jobs[1].folder / "checkpoints").write_text("")  # no folder can be made there
    first, second, third = running.run_all(jobs, console=Console(quiet=True))
    assert isinstance(second, CheckpointError)
    assert json.loads((jobs[1].folder / "run.json").read_text())["status"] == "failed"
    for found in (first, third):
        assert found["metrics"]["loss"] > 0
