"""`experiments.aot`: every family at the base scale compiles for 16 chips and fits; else it is said what would."""

import dataclasses
import subprocess
import sys

import pytest

pytest.importorskip("libtpu", reason="libtpu is not installed; `make test-aot` installs it")

from experiments import aot, configs, experiment
from research.data.corpora import StandardLibrary

FAMILIES = {
    "causal": ["configs/architecture/causal_lm.gin"],
    "prefix": ["configs/architecture/prefix_lm.gin"],
    "encoder_decoder": ["configs/architecture/encoder_decoder_denoising.gin"],
    "encoder": ["configs/base.gin", "configs/family/encoder.gin", "configs/objective/masked_lm.gin"],
}


def planned(family, **parallelism):
    loaded, _ = experiment.load(
        [*FAMILIES[family], "configs/scale/base.gin"],
        [f"Parallelism.{axis}={parts}" for axis, parts in parallelism.items()],
    )
    return dataclasses.replace(loaded, data=dataclasses.replace(loaded.data, corpus=StandardLibrary()))


@pytest.mark.parametrize(
    ("family", "parallelism"),
    [
        ("causal", {}),
        ("prefix", {}),
        ("encoder_decoder", {"fsdp": 4}),
        ("encoder", {"fsdp": 4, "tensor": 2}),
    ],
)
def test_the_base_scale_compiles_for_a_tpu_and_fits(family, parallelism):
    devices = aot.chips("v5e:4x4")
    plan = planned(family, **parallelism)
    found = aot.report(*aot.compiled(plan, devices, None), devices[0].device_kind)
    used = found["arguments"] + found["outputs"] + found["temporaries"]
    assert used < 0.5 * found["chip"]
    assert found["collectives"]["all-reduce"] + found["collectives"]["reduce-scatter"] > 0
    if family in ("causal", "encoder"):  # whose masks are known before the batch is
        assert found["kernels"]["tpu_custom_call"] >= 3  # splash: forward, dq, dk and dv
    if "fsdp" in parallelism:
        assert found["collectives"]["all-gather"] > 0
        # Parameters and two moments, float32, in parts; tokens are few beside them.
        count = experiment.cost(plan.model, plan.data, None).parameters
        assert found["arguments"] < 1.1 * 12 * count / parallelism["fsdp"]


def command(*words):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.aot", "--gin_file=configs/architecture/causal_lm.gin"),
            *("--gin_file=configs/scale/base.gin", "--gin_file=tests/experiments/library.gin", *words),
        ],
        cwd=configs.ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    return done.returncode, done.stdout, done.stderr


def test_what_does_not_fit_is_one_line_and_the_budget_says_what_would():
    code, said, wrong = command(
        "--topology=v5e:2x2", "--gin_param=Data.batch=4096", "--gin_param=StackConfig.remat='none'"
    )
    assert code == 1
    assert "does not fit v5e:2x2" in wrong.splitlines()[-1]
    assert "Recipe.accumulate" in said


def test_a_topology_that_does_not_exist_is_one_line():
    code, _, wrong = command("--topology=v5e:3x5")
    assert code == 1
    assert wrong.splitlines()[-1].startswith("error: --topology=v5e:3x5")
    assert "expected e.g. v5e:4x4" in wrong
