"""Run folders: one experiment each, used by one process at a time, written so that a reader sees whole files."""

import contextlib
import difflib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import jax

from experiments import configs

Record = dict[str, Any]

CONVERTED = "converted"  # the status of a run folder that nothing was trained in


class RunError(RuntimeError):
    """Why a run folder cannot be used, in one line."""


class InUse(RunError):
    """Another process is at work in the run folder."""


class RunFolder:
    """A folder that is this experiment's own from now until `close`, or until the process ends however it does."""

    def __init__(self, folder: Path, *, key: str, fingerprint: str, config: str):
        """Make the folder, or find out that it holds this experiment.

        Args:
          key: of the experiment and its data.
          fingerprint: of the data.
          config: the gin text.

        Raises:
          InUse: another process has it.
          RunError: it holds another experiment, or cannot be written.
        """
        self.path = folder
        folder.mkdir(parents=True, exist_ok=True)
        # Of several processes of one run the first one writes.
        self._lock = None if jax.process_index() else filelock.FileLock(folder / ".lock", timeout=0)
        try:
            if self._lock is not None:
                self._lock.acquire()
        except filelock.Timeout:
            raise InUse(f"run folder {folder} is in use by another process; wait until it is done") from None
        except OSError as error:
            raise RunError(f"cannot write {folder}: {error.strerror}; make it writable") from error
        try:
            self.known: Record = self._checked(key, fingerprint, config)
            write(folder / "config.gin", config)
        except BaseException:
            self.close()
            raise

    def _checked(self, key: str, fingerprint: str, config: str) -> Record:
        """What `run.json` says, if there is one."""
        status = self.path / "run.json"
        if not status.exists():
            return {}
        known = json.loads(status.read_text())
        if known.get("status") == CONVERTED:
            raise RunError(
                f"run folder {self.path} holds parameters that were converted from {known['source']}; start from them "
                f"with --init_from={self.path} and another --run_dir"
            )
        if known["data"]["fingerprint"] != fingerprint:
            raise RunError(
                f"run folder {self.path} read data {known['data']['fingerprint'][:12]}, but now the corpus or the "
                f"weights are {fingerprint[:12]}; choose another --run_dir or remove the folder"
            )
        if known["key"] != key:
            before, now = known["config"].splitlines(), config.splitlines()
            lines = [line for line in difflib.ndiff(before, now) if line[0] in "+-" and "=" in line]
            raise RunError(
                f"run folder {self.path} holds another experiment ({'; '.join(lines) or 'another version'}); "
                "choose another --run_dir or remove the folder"
            )
        return known

    @property
    def result(self) -> Record | None:
        """What the run has measured, if it is finished."""
        return finished(self.path)

    def finish(self, result: Record) -> None:
        """Write the result. RunError: it cannot be written."""
        write(self.path / "result.json", text_of(result))

    def adopt(self, other: Path, result: Record) -> None:
        """Have what another folder has, but its settings, with this result; the other is locked meanwhile.

        Raises:
          InUse: another process is at work there.
          OSError: it cannot be copied.
        """
        try:
            lock = filelock.FileLock(other / ".lock", timeout=0)
            lock.acquire()
        except filelock.Timeout:
            raise InUse(f"run folder {other} is in use by another process") from None
        with lock, tempfile.TemporaryDirectory(prefix=".taking", dir=self.path) as part:
            own = shutil.ignore_patterns(".lock", "aside_*", "config.gin", "result.json", ".taking*")
            copy = Path(shutil.copytree(other, Path(part) / "run", ignore=own))
            # What says that there is a run goes last: until then there is none, and the next launch begins anew.
            for path in sorted(copy.iterdir(), key=lambda path: path.name == "run.json"):
                place = self.path / path.name
                if place.is_dir():  # of a copy that was cut short
                    shutil.rmtree(place)
                path.rename(place)
        self.known = json.loads((self.path / "run.json").read_text())
        self.finish(result)

    def set_aside(self) -> None:
        """Put all that the run has left into a folder of its own, so that it begins anew."""
        number = next(n for n in itertools.count(1) if not (self.path / f"aside_{n}").exists())
        left = [path for path in self.path.iterdir() if not path.name.startswith((".lock", "aside_"))]
        aside = self.path / f"aside_{number}"
        aside.mkdir()
        # The result goes last: until then the next process sees a finished run.
        for path in sorted(left, key=lambda path: path.name == "result.json"):
            path.rename(aside / path.name)
        self.known = {}
        write(self.path / "config.gin", (aside / "config.gin").read_text())

    def close(self) -> None:
        """Let another process have it."""
        if self._lock is not None:
            self._lock.release()


def finished(folder: Path) -> Record | None:
    """What a run has measured, if it is finished."""
    path = folder / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def entries(path: Path) -> Iterator[Record]:
    """The whole lines of a file of JSON objects, which a kill may have cut short; none where there is no file."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
    return (json.loads(line) for line in lines[:-1])


def history(folder: Path, result: Record | None) -> dict[int, float]:
    """Validation loss (nats per target token) by step, in order of steps: as the log of a run has it, and of the state
    that the run ended with as its result has it. Of a step that was taken twice the later loss counts.
    """
    name = "validation_loss"
    log = entries(folder / "metrics.jsonl")
    losses = {line["step"]: line[name] for line in log if line.get(name) is not None}
    if result is not None:
        losses[scored(result)] = result["metrics"][name]
    return dict(sorted(losses.items()))


def scored(result: Record) -> int:
    """The step whose parameters a result is about."""
    return result["metrics"].get("steps", result["budget"]["steps"])  # stopped early, the best


def trained(folder: Path) -> bool:
    """Whether the run is finished, and the parameters that its result is about are still there."""
    result = finished(folder)
    return result is not None and (folder / "checkpoints" / str(scored(result))).is_dir()


def text_of(value: Record) -> str:
    """JSON for people; ValueError where a number is not finite."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def write(path: Path, text: str) -> None:
    """`replace` a file; of several processes of one run the first one does."""
    if not jax.process_index():
        replace(path, text)


def replace(path: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or what was there before.

    Raises:
      RunError: it cannot be written.
    """
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunError(
            f"cannot write {path}: {error.strerror}; make room there, or make it writable, and the same command goes on"
        ) from error


def commit() -> Record:
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
