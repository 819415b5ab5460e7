"""Runs by the command line on an NVIDIA GPU, each in a process of its own; see `make test-gpu`."""

import json
import signal
import subprocess
import sys
import time

import jax
import pytest

from experiments import configs

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU; `make test-gpu` needs one")

STEPS, SAVED = 1000, 100
FAMILIES = ("causal_lm", "prefix_lm", "encoder_decoder_lm")


def command(program, *words):
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{program}", *words],
        cwd=configs.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def training(folder, family, *bindings):
    """A run in bfloat16 that has begun."""
    files = f"configs/architecture/{family}.gin", "configs/scale/smoke.gin", "tests/experiments/library.gin"
    shared = (
        f"train.steps={STEPS}",
        f"Plan.checkpoint_every={SAVED}",
        f"Plan.log_every={SAVED}",
        "StackConfig.dtype='bfloat16'",
    )
    return command(
        "train",
        f"--run_dir={folder}",
        *(f"--gin_file={path}" for path in files),
        *(f"--gin_param={binding}" for binding in (*shared, *bindings)),
    )


def ended(process):
    said, _ = process.communicate(timeout=240)
    return process.returncode, said


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.fixture(scope="module", params=FAMILIES)
def whole(request, tmp_path_factory):
    """A run that sums in the same order every time, for which "auto" takes blockwise."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    code, said = ended(training(folder, request.param, "train.deterministic=True"))
    assert code == 0, said
    return request.param, folder


def test_a_run_that_is_stopped_and_resumed_equals_one_that_is_not(whole, tmp_path):
    family, folder = whole
    stopped = tmp_path / "stopped"
    process = training(stopped, family, "train.deterministic=True")
    deadline = time.monotonic() + 200
    while not (stopped / "checkpoints" / str(SAVED)).exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    code, said = ended(process)
    assert code == 130, said
    code, said = ended(training(stopped, family, "train.deterministic=True"))
    assert code == 0, said
    assert "resumed at step" in said
    assert losses(stopped) == losses(folder)
    results = [json.loads((path / "result.json").read_text()) for path in (folder, stopped)]
    assert results[0]["metrics"] == results[1]["metrics"]


def test_cudnn_trains_as_blockwise_does_and_generates(whole, tmp_path):
    """A run with cuDNN's attention in every layer; what it learned goes on with a prompt."""
    family, folder = whole
    code, said = ended(training(tmp_path / "run", family, "StackConfig.backend='cudnn'"))
    assert code == 0, said
    found, wanted = losses(tmp_path / "run"), losses(folder)
    assert found.keys() == wanted.keys()
    assert found[STEPS] < 0.8 * found[SAVED]
    for step, loss in found.items():
        assert loss == pytest.approx(wanted[step], rel=0.1), step
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["environment"]["attention"] == "cudnn"
    words = f"--run_dir={folder}", "--tokens=24", "--temperature=0", "--prompt=import os"
    code, said = ended(command("generate", *words))
    assert code == 0, said
    assert said.startswith("import os")
    assert len(said) > len("import os\n")
