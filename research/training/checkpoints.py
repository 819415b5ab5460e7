"""Checkpoints of a run, by Orbax: written in the background, whole or not at all, and verified when they are read.

Beside the arrays lies a record: name, shape, dtype and checksum of every leaf, the place in the data, and metrics. It
says what a checkpoint holds before an array is read, and whether what was read is what was written. Orbax alone
restores a flipped bit without a word.
"""

import contextlib
import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import Array

from research.models.paths import named, path_of
from research.training.checksums import checksums, crc32
from research.training.orbax_errors import cause

Value = TypeVar("Value")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or none can be read. One line, with the folder and the cause."""


class _Corrupt(Exception):
    """What one checkpoint holds is not what was written, or cannot be read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keep:
    """Which checkpoints stay; one that any of the rules chooses does.

    Attributes:
      latest: how many of the newest.
      every: also those whose step is a multiple of it; 0: none.
      best: also so many of the best by `metric`; a checkpoint saved without it is none of them.
      metric: a name in the `metrics` of `Checkpoints.save`.
      lowest: whether the lowest value is the best.
    """

    latest: int = 2
    every: int = 0
    best: int = 0
    metric: str = "validation_loss"
    lowest: bool = True

    def __post_init__(self):
        for name, least in (("latest", 1), ("every", 0), ("best", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"Keep.{name} = {getattr(self, name)}: expected at least {least}")

    def ranked(self, scores: Mapping[int, float]) -> list[int]:
        """The steps from best to worst, of equal ones the newer first; `scores` are values of `metric`."""
        return sorted(scores, key=lambda step: (scores[step] if self.lowest else -scores[step], -step))

    def chosen(self, steps: Sequence[int], scores: Mapping[int, float]) -> set[int]:
        """Those of the steps (in order) that stay."""
        periodic = {step for step in steps if self.every and step % self.every == 0}
        return periodic | set(steps[-self.latest :]) | set(self.ranked(scores)[: self.best])


class Checkpoints:
    """The checkpoints below one folder.

    Use it as a context manager: leaving it waits until what was saved is on the disk. Nothing but `save` changes what
    is there, so that a run's checkpoints can be read while it writes them.

    Args:
      folder: made if it is missing.
      keep: which checkpoints stay when a newer one is complete.
      say: told, in one line, of a checkpoint that is passed over.

    Raises:
      CheckpointError: the folder cannot be made or read.
    """

    def __init__(self, folder: Path, keep: Keep = Keep(), say: Callable[[str], None] = print):  # noqa: B008
        self._folder = folder.absolute()  # Orbax fails in the background on a relative path
        self._keep, self._say = keep, say
        self._corrupt: set[int] = set()
        self._metrics: dict[int, dict[str, float]] = {}
        self._saving: int | None = None
        self._failed = False
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Preserve(lambda steps: self._keep.chosen(steps, self._scores(steps))),
            lightweight_initialize=True,  # metadata of a damaged checkpoint may be no JSON
            # Made in the background, a folder that cannot be made keeps threads waiting for it when the process ends.
            async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
        )
        try:
            return ocp.CheckpointManager(self._folder, item_names=("state", "record"), options=options)
        except OSError as error:
            raise CheckpointError(
                f"{self._folder}: {cause(error)}; choose a folder that can be written"
            ) from error

    def _close(self) -> None:
        with contextlib.suppress(Exception):  # it may repeat the error of a save that failed
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if not self._failed:  # whoever asked for the save that failed was told
                self.wait()
        except CheckpointError as failure:
            if error is None:
                raise
            self._tell(str(failure))
        finally:
            self._close()

    @property
    def steps(self) -> list[int]:
        """The steps that were saved, in order, without those found to be corrupt."""
        return [step for step in self._manager.all_steps() if step not in self._corrupt]

    @property
    def latest(self) -> int | None:
        """The newest step, or None."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """The step of the best metric that was saved, or None."""
        return next(iter(self._keep.ranked(self._scores(self.steps))), None)

    def reached_preemption(self, step: int) -> bool:
        """Whether every process is to save after this step because one of them is told to stop (`jax.distributed`)."""
        return self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Wait until what was saved is on the disk.

        Raises:
          CheckpointError: it cannot be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def save(self, state: Any, data: Any, metrics: dict[str, float] | None = None) -> None:
        """Save under the state's step, in the background; nothing is done if that is the newest one.

        Args:
          state: a pytree of arrays, none of them empty, with an i32[] `step`; its buffers may be donated at once.
          data: the place in the data, JSON.
          metrics: of this state; only finite ones are ranked.

        Raises:
          CheckpointError: this checkpoint or the one before cannot be written, or there is a newer one.
        """
        step, latest = int(state.step), self.latest
        if step == latest:
            return
        if latest is not None and step < latest:
            raise CheckpointError(
                f"{self._folder} holds step {latest}, newer than step {step}; remove it or choose another folder"
            )
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        sums = jax.device_get(checksums(state))
        content = {
            "leaves": {
                name: {"dtype": str(leaf.dtype), "shape": leaf.shape, "checksum": int(sums[name])}
                for name, leaf in named(state).items()
            },
            "data": data,
            "metrics": metrics,
        }
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            record=ocp.args.JsonSave({"content": content, "crc32": crc32(content)}),
        )
        self.wait()
        if self._failed:  # Orbax would report it again
            self._close()
            self._manager, self._failed = self._open(), False
        self._metrics[step] = metrics
        self._saving = step
        with self._writing():
            self._clear()
            self._manager.save(step, args=args, force=True)

    def restore(self, like: Any, step: int | None = None) -> tuple[Any, Any]:
        """A state, shaped and placed like `like`, and the place in the data.

        Args:
          like: a state of arrays or of `ShapeDtypeStruct`s; without a sharding a leaf goes to the first device.
          step: None: the newest that is whole. Newer ones are named by `say`; the next `save` moves them aside.

        Raises:
          CheckpointError: that step is corrupt or missing, or no step is whole.
          ValueError: another state was saved, for instance of another optimizer.
        """

        def read(step: int) -> tuple[Any, Any]:
            content = _agreed(lambda: self._record(step))
            report = _differences(content["leaves"], named(like))
            if report:
                raise ValueError(
                    f"{self._folder}: step {step} holds another state: {_few(report.values())}; configure the run as "
                    "it was, or choose another folder"
                )
            return self._arrays(step, jax.tree.map(_abstract, like), content["leaves"]), content["data"]

        return self._newest(step, read)

    def restore_params(
        self, like: Any, step: int | None = None, *, field: str = "params", strict: bool = True
    ) -> tuple[Any, list[str]]:
        """The parameters alone; the rest of the state is not read.

        Args:
          like: arrays or `ShapeDtypeStruct`s; what was saved in another dtype is cast to theirs.
          step: as in `restore`.
          field: of the state; "average" for averaged parameters.
          strict: whether every leaf of either must be in both. If not, what does not fit keeps its value in `like`.

        Returns: the parameters, and a line for each leaf that is missing, unexpected or of another shape.

        Raises:
          CheckpointError: as `restore`.
          ValueError: the field was not saved, or `strict` and there is such a leaf; a line for each.
        """

        def read(step: int) -> tuple[Any, list[str]]:
            leaves, prefix = _agreed(lambda: self._record(step))["leaves"], f"{field}/"
            saved = {
                name.removeprefix(prefix): leaf for name, leaf in leaves.items() if name.startswith(prefix)
            }
            if not saved:
                fields = ", ".join(sorted({name.partition("/")[0] for name in leaves}))
                raise ValueError(f"{self._folder}: step {step} has no {field!r}: expected one of {fields}")
            wanted = {
                name: _abstract(leaf, saved[name]["dtype"] if name in saved else None)
                for name, leaf in named(like).items()
            }
            report = _differences(saved, wanted)
            if report and strict:
                raise ValueError(
                    "\n".join([f"{self._folder}: step {step} has other {field}:", *report.values()])
                )
            fitting = wanted.keys() - report.keys()
            abstract = jax.tree_util.tree_map_with_path(
                lambda path, _: wanted[path_of(path)] if path_of(path) in fitting else ocp.PLACEHOLDER, like
            )
            found = self._arrays(step, {field: abstract}, leaves)[field]
            return jax.tree.map(
                lambda new, old: old if new is ocp.PLACEHOLDER else new.astype(old.dtype), found, like
            ), list(report.values())

        return self._newest(step, read)

    def _newest(self, step: int | None, read: Callable[[int], Value]) -> Value:
        """What `read` makes of that step, or of the newest that is whole."""
        self.wait()
        self._manager.reload()  # another process may be writing
        if step is not None:
            try:
                return read(step)
            except _Corrupt as error:
                raise CheckpointError(
                    f"{self._folder}: step {step}: {error}; there are steps {self.steps}"
                ) from error
        corrupt: dict[int, str] = {}
        for candidate in reversed(self.steps):
            try:
                value = read(candidate)
            except _Corrupt as error:
                corrupt[candidate] = str(error)
                continue
            for bad, why in corrupt.items():
                self._tell(f"{self._folder}: step {bad}: {why}; step {candidate} is used instead")
            self._corrupt |= corrupt.keys()
            return value
        if not corrupt:
            raise CheckpointError(f"no checkpoint below {self._folder}; train first")
        listed = "; ".join(f"step {bad}: {why}" for bad, why in corrupt.items())
        raise CheckpointError(
            f"{self._folder}: no checkpoint is whole: {listed}; remove the folder to begin anew"
        )

    def _record(self, step: int) -> dict[str, Any]:
        # Where Orbax wrote it. Orbax itself would not read while it saves.
        record = json.loads((self._folder / str(step) / "record" / "metadata").read_text())
        if crc32(record["content"]) != record["crc32"]:
            raise _Corrupt("corrupt record")
        return record["content"]

    def _arrays(self, step: int, abstract: Any, leaves: dict[str, Any]) -> Any:
        """The arrays of a tree of `ShapeDtypeStruct`s, and placeholders where nothing is to be read."""
        args = ocp.args.PyTreeRestore(
            item=abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=True,  # the record says what there is; what it does not say would be an empty container
        )
        wanted = {name: leaves[name] for name, leaf in named(abstract).items() if leaf is not ocp.PLACEHOLDER}

        def read() -> tuple[Any, dict[str, Array]]:
            # Not by the manager: it waits for all processes, of which one may have failed.
            tree = ocp.PyTreeCheckpointHandler().restore(
                self._manager.directory / str(step) / "state", args=args
            )
            arrays = {name: leaf for name, leaf in named(tree).items() if isinstance(leaf, jax.Array)}
            if wrong := _differences(wanted, arrays):
                raise _Corrupt(f"corrupt {_few(wrong)}")
            return tree, arrays

        tree, arrays = _agreed(read)
        sums = jax.device_get(checksums(arrays))
        if wrong := [name for name in sorted(wanted) if sums[name] != wanted[name]["checksum"]]:
            raise _Corrupt(f"corrupt {_few(wrong)}")
        return tree

    def _scores(self, steps: Collection[int]) -> dict[int, float]:
        """The finite values of the metric that ranks checkpoints, by step."""
        scores = {}
        for step in steps:
            if step not in self._metrics:
                try:
                    self._metrics[step] = self._record(step)["metrics"]
                except Exception:  # a damaged record fails in any way
                    self._metrics[step] = {}
            if math.isfinite(score := self._metrics[step].get(self._keep.metric, math.nan)):
                scores[step] = score
        return scores

    @contextlib.contextmanager
    def _writing(self) -> Generator[None]:
        """Failures in one line; half of a checkpoint does not stay to fill the disk."""
        try:
            yield
        except Exception as error:
            self._failed = True
            self._sweep()
            self._manager.reload()
            raise CheckpointError(
                f"cannot save step {self._saving} below {self._folder}: {cause(error)}; steps {self.steps} are whole: "
                "make room there, or make it writable, and the same command goes on from the last"
            ) from error

    def _clear(self) -> None:
        """Remove what a killed run left unfinished, and move aside what is corrupt: its step is saved anew."""
        self._sweep()
        if not self._corrupt:
            return
        for step in self._corrupt if jax.process_index() == 0 else ():
            aside = self._folder / f"{step}.corrupt"
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                (self._folder / str(step)).rename(aside)
        multihost_utils.sync_global_devices("corrupt checkpoints are moved")
        self._corrupt.clear()
        self._manager.reload()

    def _sweep(self) -> None:
        if jax.process_index() == 0:
            for half in self._folder.glob(f"*{ocp.path.atomicity_types.TMP_DIR_SUFFIX}*"):
                shutil.rmtree(half, ignore_errors=True)

    def _tell(self, line: str) -> None:
        if jax.process_index() == 0:
            self._say(line)


@dataclasses.dataclass(frozen=True)
class _Preserve:
    """Orbax's `PreservationPolicy`, by a function that chooses steps."""

    chosen: Callable[[Sequence[int]], set[int]]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        chosen = self.chosen([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in chosen for checkpoint in checkpoints]


def _abstract(leaf: Any, dtype: str | None = None) -> jax.ShapeDtypeStruct:
    """A leaf's shape and place; `dtype`: the name of another dtype."""
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    kind = leaf.dtype if dtype in (None, str(leaf.dtype)) else jnp.dtype(dtype)
    return jax.ShapeDtypeStruct(leaf.shape, kind, sharding=sharding)


def _differences(saved: dict[str, Any], wanted: dict[str, Any]) -> dict[str, str]:
    """By name of a leaf that is not in both, or not the same, a line that says so."""
    lines = {}
    for name in sorted(saved.keys() | wanted.keys()):
        if name not in saved:
            lines[name] = f"{name}: missing in the checkpoint"
        elif name not in wanted:
            lines[name] = f"{name}: unexpected, only in the checkpoint"
        else:
            old = f"{saved[name]['dtype']}{saved[name]['shape']}"
            new = f"{wanted[name].dtype}{list(wanted[name].shape)}"
            if old != new:
                lines[name] = f"{name}: {old} in the checkpoint, {new} expected"
    return lines


def _few(items: Collection[str]) -> str:
    first = ", ".join(list(items)[:3])
    return f"{first} and {len(items) - 3} more" if len(items) > 3 else first


def _agreed(read: Callable[[], Value]) -> Value:
    """What `read` returns; where it fails in one process all find the checkpoint corrupt, and try the same one next."""
    value: Any = None
    failure: _Corrupt | None = None
    try:
        value = read()
    except (jax.errors.JaxRuntimeError, MemoryError):
        raise
    except _Corrupt as error:
        failure = error
    except Exception as error:  # a flipped bit makes any reader fail in any way
        failure = _Corrupt(f"cannot be read ({cause(error)})")
    failed = multihost_utils.process_allgather(np.asarray(failure is not None))
    if failure is not None:
        raise failure
    if failed.any():
        raise _Corrupt("cannot be read by another process")
    return value
