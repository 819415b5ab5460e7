"""Rows of the smoke study of architectures as a launch would leave them, without one."""

import dataclasses

from experiments import experiment, study
from research.analysis.results import Row


def rows(loss=lambda number: 2 + number / 100):
    """One for each arm and seed, in order, whose config is the real one; `loss`: that of the row of a number."""
    planned = study.load("architecture", "smoke")
    cells = ((arm, seed) for arm in planned.arms for seed in planned.seeds_of(arm))
    return [_row(arm, seed, loss(number)) for number, (arm, seed) in enumerate(cells)]


def _row(arm, seed, loss):
    files = [f"configs/architecture/{arm}.gin", "configs/scale/smoke.gin"]
    values = {
        **{"study": "architecture", "scale": "smoke", "arm": arm, "seed": seed},
        **{"key": f"{seed}" * 64, "design": arm, "commit": "c0ffee", "dirty": False},
        "config": experiment.load(files, [f"train.seed={seed}"])[1],
        "environment": {"attention": "dense", "matmul_precision": "float32"},
        "data": {"fingerprint": "feedbeef" * 8, "order": f"{seed}" * 64},
        "budget": dict.fromkeys(("parameters", "flops_per_token", "train_flops", "loss_tokens"), 119_104),
        "metrics": {"loss": loss},
        "timing": {"tokens_per_second": 79_460.0},
    }
    return Row(**{field.name: values.get(field.name, {}) for field in dataclasses.fields(Row)})
