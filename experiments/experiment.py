"""An experiment as one frozen value, and what it takes to run it.

gin files bind it under the name `train`:

    experiment.train.steps = 1000        # in a file, after `from experiments import experiment`
    --gin_param="train.steps=1000"       # on the command line
"""

import dataclasses
import datetime
import difflib
import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from rich.console import Console

from experiments import configs
from research.analysis import budget
from research.attention import core
from research.batch import Batch
from research.data.layouts import InPlace
from research.data.objectives import Classification
from research.data.pipeline import Data, Dataset
from research.data.streams import Stream
from research.evaluation import likelihood
from research.models.config import StackConfig
from research.models.families import EncoderConfig, FamilyConfig
from research.training import loop
from research.training.checkpoints import Checkpoints
from research.training.optimizers import AdamW, Optimizer
from research.training.step import Trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """All that decides the numbers of a run, and `plan`, which does not.

    Attributes:
      model: the family and its stacks.
      data: corpus, objective, layout, windows and batches.
      optimizer: with its learning rate and schedule.
      steps: optimiser steps.
      seed: of the initial parameters, the data order and dropout.
      matmul_precision: of float32 products; TPUs and TF32 would round them otherwise.
      plan: when to log, evaluate and save.
    """

    model: FamilyConfig
    data: Data
    optimizer: Optimizer = AdamW()
    steps: int = 1000
    seed: int = 0
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    plan: loop.Plan = loop.Plan()

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"train.steps = {self.steps}: expected at least 1")
        _expressible(self.model, self.data)
        limits = [stack.positions.limit for stack in _stacks(self.model) if stack.positions.limit is not None]
        longest = max(self.data.lengths(self.data.objectives).values())
        if limits and isinstance(self.data.layout, Stream):
            raise ValueError(
                f"Learned.length = {min(limits)}: positions of Data.layout = Stream() run on without an end; set "
                "StackConfig.positions to a scheme that has none, such as @Rotary()"
            )
        if limits and longest > min(limits):
            raise ValueError(
                f"Learned.length = {min(limits)} positions, but Data.window = {self.data.window} makes lines of "
                f"{longest} tokens; raise Learned.length or lower Data.window"
            )

    def key(self) -> str:
        """sha256 (hex) of everything that decides the numbers: every value of the tree but the plan."""
        tree = describe(dataclasses.replace(self, plan=loop.Plan()))
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


train = Experiment  # the name that gin files and --gin_param bind


class RunError(RuntimeError):
    """Why a run folder cannot be used, in one line."""


def load(files: Iterable[str], bindings: Sequence[str] = ()) -> tuple[Experiment, str]:
    """The experiment that gin files and bindings describe, and its operative config; see `configs.load`."""
    return configs.load(train, files, bindings), configs.operative()


def describe(value: Any) -> Any:
    """A config tree as JSON: frozen values by the name of their class and all their fields, defaults included."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"is": type(value).__qualname__, **fields}
    if isinstance(value, tuple):
        return [describe(item) for item in value]
    if callable(value):
        return value.__qualname__
    return value


@functools.lru_cache(maxsize=16)
def dataset(data: Data, data_dir: str | None) -> Dataset:
    """The tokenized corpus of an experiment, read once."""
    return data.load(data_dir)


@functools.lru_cache(maxsize=16)
def trainer(model: FamilyConfig, vocab: int, optimizer: Optimizer, steps: int) -> Trainer:
    """The compiled functions of an experiment, which its seeds share."""
    return Trainer(model, vocab=vocab, optimizer=optimizer.build(steps))


@functools.lru_cache(maxsize=16)
def cost(model: FamilyConfig, data: Data, data_dir: str | None) -> budget.Budget:
    """What one training batch costs, counted on the first two."""
    batches = list(itertools.islice(dataset(data, data_dir).training(seed=0), 2))
    return budget.count(model, vocab=dataset(data, data_dir).tokenizer.vocab_size, batches=batches)


def run(
    experiment: Experiment,
    config: str,
    folder: Path,
    *,
    data_dir: str | None = None,
    console: Console,
    title: str = "train",
) -> dict[str, Any]:
    """Train and score the experiment in its run folder, going on where an earlier call was stopped.

    `config` is the gin text the experiment was made from.

    Returns the result, also in `result.json`: key, commit, dirty, config, environment, data, budget, metrics and
    timing. A finished folder is returned as it is.

    Raises:
      RunError: the folder belongs to another experiment.
      loop.Interrupted, loop.Diverged: see `loop.run`.
    """
    key = experiment.key()
    text = dataset(experiment.data, data_dir)
    finished = _open(folder, key, config, text.fingerprint)
    if finished is not None:
        console.print(f"{title} is finished: {folder / 'result.json'}")
        return finished

    data, steps = experiment.data, experiment.steps
    functions = trainer(experiment.model, text.tokenizer.vocab_size, experiment.optimizer, steps)
    price = cost(experiment.model, data, data_dir)
    tests = _held_out(experiment, text, "test")
    validations = {
        f"validation_{name}": batches for name, batches in _held_out(experiment, text, "validation").items()
    }
    scored = None if _classes(experiment.model) else text.tokenizer

    def score(params: Any, sets: dict[str, list[Batch]]) -> dict[str, float]:
        return {
            prefix + name: value
            for prefix, batches in sets.items()
            for name, value in likelihood.held_out(functions, params, batches, scored).items()
        }

    record = {
        "key": key,
        **_commit(),
        "config": config,
        "environment": _environment(experiment),
        "data": {"fingerprint": text.fingerprint, "order": text.order(experiment.seed, steps)},
        "budget": {
            "parameters": price.parameters,
            "flops_per_token": price.flops_per_token,
            "train_flops": price.train_flops * steps,
            "tokens_seen": price.tokens * steps,
            "loss_tokens": price.loss_tokens * steps,
            "steps": steps,
        },
    }
    batches = text.training(experiment.seed, workers=experiment.plan.workers)
    hard = data.hard

    def mine(step: int, params: Any) -> None:
        if hard is not None and hard.refreshes(step):
            ids = hard.scored(step, len(text.windows[0]["train"]))
            rows = [functions.row_losses(params, batch) for batch in text.rows(experiment.seed, ids.tolist())]
            batches.mined(hard.hardest(ids, np.concatenate(rows)[: len(ids)]))

    _status(folder, "running", record)
    try:
        with (
            jax.default_matmul_precision(experiment.matmul_precision),
            Checkpoints(folder / "checkpoints") as checkpoints,
        ):
            state, report = loop.run(
                functions.initial(jax.random.key(experiment.seed)),
                functions.step,
                batches,
                steps=steps,
                plan=experiment.plan,
                folder=folder,
                checkpoints=checkpoints,
                evaluate=lambda params: score(params, validations),
                prepare=mine,
                tokens=budget.tokens_read,
                console=console,
                title=title,
            )
            metrics = score(state.params, {**tests, **validations})
    except BaseException as error:
        _status(
            folder, "interrupted" if isinstance(error, loop.Interrupted) else "failed", record, str(error)
        )
        raise
    finally:
        batches.close()
    timing = {
        "tokens_per_second": report.tokens_per_second,
        "wall_seconds": report.seconds,
        "peak_memory_bytes": _peak_memory(),
    }
    result = {**record, "metrics": metrics, "timing": timing}
    _write(folder / "result.json", result)
    _status(folder, "done", record)
    return result


def _held_out(experiment: Experiment, text: Dataset, split: str) -> dict[str, list[Batch]]:
    """What is scored: the whole split and, of a mixture, each part of it, by what its metrics' names begin with."""
    names = experiment.data.mixture.names
    each = (
        {f"{name}_": text.held_out(split, part) for part, name in enumerate(names)} if len(names) > 1 else {}
    )
    return {"": text.held_out(split), **each}


def _classes(model: FamilyConfig) -> int | None:
    return model.classes if isinstance(model, EncoderConfig) else None


def _expressible(model: FamilyConfig, data: Data) -> None:
    """Refuse what the family cannot express, although the layout could place it."""
    if isinstance(data.layout, InPlace):
        labels = {len(one.labels) if isinstance(one, Classification) else None for one in data.objectives}
        if labels != {_classes(model)}:
            raise ValueError(
                f"EncoderConfig.classes = {_classes(model)}, but the objectives have {labels} labels in place; bind "
                "EncoderConfig.classes to the number of Classification.labels, None without one, and train an Encoder"
            )
    elif not model.mask.extendable:
        raise ValueError(
            f"{type(model).__name__}.mask = {model.mask} lets a token see the targets that it predicts; set "
            "Data.layout = @layouts.InPlace() or a mask that hides them, such as @masks.Prefix()"
        )


def _stacks(model: FamilyConfig) -> list[StackConfig]:
    values = [getattr(model, field.name) for field in dataclasses.fields(model)]
    return [value for value in values if isinstance(value, StackConfig)]


def _open(folder: Path, key: str, config: str, fingerprint: str) -> dict[str, Any] | None:
    """Make the folder this experiment's own; its result if it is finished."""
    folder.mkdir(parents=True, exist_ok=True)
    status = folder / "run.json"
    if status.exists():
        known = json.loads(status.read_text())
        if known["key"] != key:
            before, now = known["config"].splitlines(), config.splitlines()
            lines = [line for line in difflib.ndiff(before, now) if line[0] in "+-" and "=" in line]
            raise RunError(
                f"run folder {folder} holds another experiment ({'; '.join(lines) or 'another version'}); "
                "choose another --run_dir or remove the folder"
            )
        if known["data"]["fingerprint"] != fingerprint:
            raise RunError(
                f"run folder {folder} read data {known['data']['fingerprint'][:12]}, but now the corpus or the weights "
                f"are {fingerprint[:12]}; choose another --run_dir or remove the folder"
            )
    (folder / "config.gin").write_text(config)
    result = folder / "result.json"
    return json.loads(result.read_text()) if result.exists() else None


def _status(folder: Path, status: str, record: dict[str, Any], error: str | None = None) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    _write(folder / "run.json", {"status": status, "time": now, "error": error, **record})


def _write(path: Path, value: dict[str, Any]) -> None:
    """Write JSON so that a reader sees all of it or nothing."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    os.replace(temporary, path)


def _commit() -> dict[str, Any]:
    """The commit of the code, and whether it was changed since."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=configs.ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()

    code = ("research", "experiments", "configs", "requirements.txt")
    return {
        "commit": git("rev-parse", "HEAD") or "unknown",
        "dirty": bool(git("status", "--porcelain", "--", *code)),
    }


def _environment(experiment: Experiment) -> dict[str, Any]:
    device = jax.devices()[0]
    backends = {
        core.resolved_name(stack.backend)
        for stack in _stacks(experiment.model)
        if isinstance(stack.backend, str)
    }
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": importlib.metadata.version("flax"),
        "platform": device.platform,
        "device": device.device_kind,
        "attention": "+".join(sorted(backends)),
        "matmul_precision": experiment.matmul_precision,
    }


def _peak_memory() -> int:
    """Most bytes this process (or its accelerator) has held so far."""
    statistics = jax.devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    return statistics.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
