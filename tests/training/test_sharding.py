"""Parallelism: a run on eight devices, and on two processes, is the run on one.

The devices are virtual, so the work is done in processes of their own, which print what they found as JSON.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from test_step import batch, stack

from experiments import configs
from research.attention.masks import Causal, Full, Prefix, Window
from research.attention.positions import Relative, T5Bias
from research.attention.recurrence import Recurrent
from research.models.config import EmbeddingConfig
from research.models.families import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from research.models.paths import path_of
from research.training.checkpoints import Checkpoints
from research.training.ensemble import Ensemble, Solo
from research.training.optimizers import Adafactor, AdamW, Muon
from research.training.sharding import Parallelism, Placement
from research.training.step import Recipe, Trainer

HERE = Path(__file__).parent
ROWS, STEPS, VOCAB = 8, 3, 40
HEADS = {"heads": 4, "width": 32}
FAMILIES = {
    "causal": DecoderConfig(stack=stack(dropout=0.1, attention_dropout=0.1, **HEADS), mask=Causal()),
    "prefix": DecoderConfig(stack=stack(positions=T5Bias(), **HEADS), mask=Prefix()),
    "encoder": EncoderConfig(stack=stack(**HEADS), mask=Full()),
    "encoder_decoder": EncoderDecoderConfig(encoder=stack(**HEADS), decoder=stack(**HEADS)),
    "encoder_decoder_tied": EncoderDecoderConfig(encoder=stack(**HEADS), decoder=stack(**HEADS), tied=True),
    "memory": DecoderConfig(stack=stack(memory=Recurrent(length=6), **HEADS), mask=Window(4)),
    "transformer_xl": DecoderConfig(
        # At so short a base no sinusoid is nearly constant, so all of the projection has a gradient.
        stack=stack(memory=Recurrent(length=6), positions=Relative(base=10.0, layers="everything"), **HEADS),
        mask=Window(4),
        embedding=EmbeddingConfig(cutoffs=(8, 24), shrink=2, head_projection=True),
    ),
    "bert": EncoderConfig(
        stack=stack(**HEADS), embedding=EmbeddingConfig(rows=48, types=2, transform=True, bias=True)
    ),
}
MESHES = {
    "data": Parallelism(),
    "fsdp": Parallelism(data=2, fsdp=4),
    "fsdp_tensor": Parallelism(fsdp=4, tensor=2),
    "sequence": Parallelism(data=2, tensor=2, sequence=2),
}
CASES = [  # every family, and every mesh
    ("causal", "fsdp_tensor"),
    ("causal", "sequence"),
    ("prefix", "sequence"),
    ("encoder", "fsdp_tensor"),
    ("encoder_decoder", "fsdp"),
    ("encoder_decoder_tied", "fsdp_tensor"),
    ("memory", "data"),
    ("transformer_xl", "fsdp_tensor"),
    ("bert", "fsdp_tensor"),
]


def batches(family, rows=ROWS):
    source = 6 if isinstance(FAMILIES[family], EncoderDecoderConfig) else None
    return [batch(step, rows=rows, source=source, start=6 * step) for step in range(STEPS)]


def solo(family, parallelism=None, optimizer=AdamW(learning_rate=1e-2), **recipe):  # noqa: B008
    trainer = Trainer(
        FAMILIES[family], vocab=VOCAB, optimizer=optimizer, steps=10, recipe=Recipe(average=0.9, **recipe)
    )
    mesh = None if parallelism is None else parallelism.mesh()
    placement = None if parallelism is None else Placement(parallelism, mesh)
    return Solo(trainer, rows=ROWS, placement=placement), mesh


def train(family, parallelism=None, **options):
    """Losses of the steps and of an evaluation, and the last parameters."""
    engine, mesh = solo(family, parallelism, **options)
    with jax.set_mesh(mesh) if mesh is not None else jax.default_device(jax.devices()[0]):
        state = engine.initial(jax.random.key(0), engine.trainer.numbers)
        losses = []
        for one in batches(family):
            own = jax.tree.map(lambda leaf: np.split(leaf, engine.hosts)[engine.host], one)
            state, metrics = engine.step(state, engine.place([own]), np.ones(1, bool))
            losses.append(float(metrics["loss"][0]))
        held_out = engine.trainer.evaluate(state.evaluated, engine.whole(batches(family)))
    return losses, held_out, state


def difference(family, mesh, **options):
    """How far a sharded run is from the plain one: losses and parameters; and what share of the state a device has."""
    plain, plain_held_out, alone = train(family, **options)
    found, held_out, state = train(family, MESHES[mesh], **options)
    losses = max(abs(a / b - 1) for a, b in zip([*found, held_out], [*plain, plain_held_out], strict=True))
    pairs = zip(jax.tree.leaves(state.params), jax.tree.leaves(alone.params), strict=True)
    worst = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)
    first = jax.devices()[0]
    leaves = [leaf for leaf in jax.tree.leaves((state.params, state.optimizer)) if leaf.ndim]
    own = sum(s.data.nbytes for leaf in leaves for s in leaf.addressable_shards if s.device == first)
    return {"losses": losses, "parameters": worst, "share": own / sum(leaf.nbytes for leaf in leaves)}


def ensemble_difference():
    """How far members spread over devices are from their runs alone."""
    trainer = Trainer(FAMILIES["causal"], vocab=VOCAB, optimizer=AdamW(), steps=10)
    engine = Ensemble(trainer, 4)
    numbers = [trainer.numbers | {"learning_rate": 1e-3 * (1 + index)} for index in range(4)]
    group = engine.join([trainer.initial(jax.random.key(i), numbers[i]) for i in range(4)])
    for one in batches("causal"):
        group, metrics = engine.step(group, engine.place([one] * 4), np.ones(4, bool))
    devices = len(group[0].params["embedding"]["table"].sharding.device_set)
    worst = 0.0
    for index in range(4):
        state = trainer.initial(jax.random.key(index), numbers[index])
        for one in batches("causal"):
            state, own = trainer.step(state, one)
        worst = max(worst, abs(float(metrics["loss"][index] / own["loss"]) - 1))
    return {"losses": worst, "devices": devices}


def main():
    """In a process with eight devices: what each case found."""
    found = {f"{family}/{mesh}": difference(family, mesh) for family, mesh in CASES}
    found["ensemble"] = ensemble_difference()
    found["adafactor"] = difference("causal", "fsdp_tensor", optimizer=Adafactor(learning_rate=1e-2))
    found["muon"] = difference("causal", "fsdp_tensor", optimizer=Muon(learning_rate=1e-2))
    found["accumulate"] = difference("causal", "fsdp", accumulate=2)
    print(json.dumps(found))


def process(index, port, folder):
    """One of two processes with two devices each: losses, and those after a restart from a checkpoint."""
    if port:
        jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
    losses, held_out, state = train("causal", Parallelism(fsdp=2, tensor=2))
    with Checkpoints(Path(folder) / "checkpoints") as checkpoints:
        if port:
            checkpoints.save(state, {"batches": 3})
    with Checkpoints(Path(folder) / "checkpoints") as checkpoints:
        engine, mesh = solo("causal", Parallelism(fsdp=2, tensor=2))
        with jax.set_mesh(mesh):
            like = engine.initial(jax.random.key(1), engine.trainer.numbers)
            restored, data = checkpoints.restore(like)
            # Many more batches than XLA:CPU bears programs under way: they would hang.
            again = engine.trainer.evaluate(restored.evaluated, 100 * engine.whole(batches("causal")))
    print(
        json.dumps(
            {"losses": losses, "held_out": held_out, "again": again, "data": data, "hosts": engine.hosts}
        )
    )


def start(devices, call):
    code = f"import jax; jax.config.update('jax_num_cpu_devices', {devices}); import conftest, test_sharding; {call}"
    path = os.pathsep.join([str(HERE.parent), str(HERE), str(HERE.parent.parent)])
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(*running):
    """What each of the processes printed last; none outlives the failure of another."""
    try:
        heard = [one.communicate(timeout=600) for one in running]
    finally:
        for one in running:
            one.kill()
            one.communicate()
    for one, (_, wrong) in zip(running, heard, strict=True):
        assert one.returncode == 0, wrong[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in heard]


@pytest.fixture(scope="module")
def eight():
    (found,) = said(start(8, "test_sharding.main()"))
    return found


PARAMETERS = 5e-4  # Adam divides by moments that are nearly nothing after three steps


@pytest.mark.slow
@pytest.mark.parametrize(("family", "mesh"), CASES)
def test_sharded_is_unsharded_for_every_family(eight, family, mesh):
    found = eight[f"{family}/{mesh}"]
    assert found["losses"] < 1e-5
    assert found["parameters"] < PARAMETERS


@pytest.mark.slow
def test_each_kind_of_split_has_its_share(eight):
    assert eight["causal/fsdp_tensor"]["share"] < 0.2  # an eighth, and the norms
    assert eight["encoder_decoder/fsdp"]["share"] < 0.3  # a quarter, and the norms
    assert eight["memory/data"]["share"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("case", ["adafactor", "muon", "accumulate"])
def test_what_stands_beside_the_parameters_may_be_sharded_too(eight, case):
    assert eight[case]["losses"] < 1e-5
    assert eight[case]["parameters"] < PARAMETERS


@pytest.mark.slow
def test_an_ensemble_spread_over_devices_has_the_same_members(eight):
    assert eight["ensemble"]["devices"] == 4
    assert eight["ensemble"]["losses"] < 1e-5


@pytest.mark.slow
def test_two_processes_are_one_with_the_same_devices(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    call = "test_sharding.process({}, {}, {!r})".format
    first, second = said(*(start(2, call(index, port, str(tmp_path))) for index in range(2)))
    assert first == second
    assert first["hosts"] == 2
    (alone,) = said(start(4, call(0, 0, str(tmp_path))))  # restores what the two have saved
    assert alone["hosts"] == 1
    np.testing.assert_allclose(first["losses"], alone["losses"], rtol=1e-6)
    for one in (first, alone):
        assert one["data"] == {"batches": 3}
        np.testing.assert_allclose(one["again"], first["held_out"], rtol=1e-6)


@pytest.mark.parametrize(
    ("parallelism", "wrong"),
    [
        ({"fsdp": 3}, "does not make 1 devices"),
        ({"data": 0}, "Parallelism.data = 0: expected at least 1"),
        ({"rules": ((".*", ("model",)),)}, "name the axis 'model'"),
    ],
)
def test_a_mesh_that_does_not_exist_is_one_line(parallelism, wrong):
    with pytest.raises(ValueError, match=wrong):
        Parallelism(**parallelism).mesh(jax.devices()[:1])


@pytest.mark.parametrize(
    ("rows", "fsdp", "data"), [(8, 1, 8), (6, 1, 6), (9, 1, 3), (8, 2, 4), (6, 2, 3), (7, 2, 4)]
)
def test_where_nothing_is_said_as_many_devices_are_used_as_divide_the_rows(rows, fsdp, data):
    mesh = Parallelism(fsdp=fsdp).mesh(jax.devices()[:1] * 8, rows=rows)
    assert (mesh.shape["data"], mesh.shape["fsdp"]) == (data, fsdp)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_large_parameter_is_split(family):
    parallelism = Parallelism(fsdp=2, tensor=2)
    placement = Placement(parallelism, parallelism.mesh(jax.devices()[:1] * 4))
    trainer = Trainer(FAMILIES[family], vocab=VOCAB, optimizer=AdamW(), steps=10)
    state = jax.eval_shape(lambda: trainer.initial(jax.random.key(0), rows=ROWS))
    places = placement.state(state).params
    whole = {
        path_of(path)
        for (path, leaf), place in zip(
            jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(places), strict=True
        )
        if leaf.size >= 512 and place.is_fully_replicated
    }
    assert not whole


@pytest.mark.parametrize(
    ("parallelism", "wrong"),
    [
        (
            Parallelism(data=3, fsdp=4),
            r"Data.batch = 8 rows do not divide over Parallelism data x fsdp = 12 devices",
        ),
        (Parallelism(sequence=12), r"rows of 6 tokens do not divide over Parallelism.sequence = 12"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_before_a_step(parallelism, wrong):
    mesh = parallelism.mesh(jax.devices()[:1] * 12)
    with pytest.raises(ValueError, match=wrong):
        Placement(parallelism, mesh).check(ROWS, 6)


@pytest.mark.slow
def test_a_preemption_of_one_process_stops_both_at_a_step_from_which_one_process_goes_on(tmp_path):
    """By the command line: SIGTERM to one of two processes, then the same run in one process, against a whole run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        *(sys.executable, "-m", "experiments.train", "--gin_file=configs/architecture/prefix_lm.gin"),
        *("--gin_file=configs/scale/smoke.gin", "--gin_file=tests/experiments/library.gin"),
        *("--gin_param=Data.batch=4", "--gin_param=Data.held_out=16", "--gin_param=train.steps=4000"),
        *("--gin_param=Plan.log_every=1", "--gin_param=Data.window=32"),
    ]

    def train(name, *more):
        return subprocess.Popen(
            [*words, f"--run_dir={tmp_path / name}", *more],
            cwd=configs.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def lines(name):
        path = tmp_path / name / "metrics.jsonl"
        return path.read_text().splitlines() if path.exists() else []

    both = [
        train("two", f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process={i}") for i in range(2)
    ]
    deadline = time.monotonic() + 300
    while len(lines("two")) < 20 and time.monotonic() < deadline and both[0].poll() is None:
        time.sleep(0.05)
    both[1].send_signal(signal.SIGTERM)
    said = [one.communicate(timeout=200)[0] for one in both]
    assert [one.returncode for one in both] == [130, 130], said[0][-3000:] + said[1][-3000:]
    stopped = {re.search(r"stopped at step (\d+)", text)[1] for text in said}
    assert len(stopped) == 1
    (step,) = map(int, stopped)
    assert (tmp_path / "two" / "checkpoints" / str(step)).is_dir()

    def losses(name):
        return [
            (line["step"], line["loss"]) for line in map(json.loads, lines(name)) if line["step"] <= step + 5
        ]

    for name in ("two", "one"):  # the stopped run goes on in one process; another one was never stopped
        running = train(name)
        while (len(lines(name)) < step + 8) and running.poll() is None and time.monotonic() < deadline + 300:
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=100)
    assert [step for step, _ in losses("two")] == [step for step, _ in losses("one")]
    np.testing.assert_allclose(*([loss for _, loss in losses(name)] for name in ("two", "one")), rtol=1e-4)
