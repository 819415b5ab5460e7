"""Cells as jobs of a cluster: Slurm by submitit, or what stands in for it on one machine.

A job that is preempted or runs out of time is put into the queue again, and its cell goes on from its newest
checkpoint, or, if it was told by SIGTERM, on which a run saves, from where it was. Rows and run folders have to lie
on a disk that the nodes share.
"""

import ast
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import submitit

from experiments import start
from research.training import loop

PAUSE = 1.0  # seconds between two looks at the jobs
STOPS = 20  # times that a cell may be stopped and begun again
DEFAULTS = {"timeout_min": 24 * 60}


class Cluster:
    """Submits work as jobs.

    Args:
      folder: of their scripts and logs.
      kind: "slurm", or "local" (processes of this machine) or "debug" (this process) to try things out.
      parameters: of the jobs, as submitit's `update_parameters` takes them.

    Raises:
      ValueError: no such cluster here, or no such parameter; one line.
    """

    def __init__(self, folder: Path, kind: str, parameters: dict[str, Any]):
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=kind, slurm_max_num_timeout=STOPS)
            self._executor.update_parameters(name="cell", **{**DEFAULTS, **parameters})
        except (RuntimeError, NameError, ValueError, TypeError, AssertionError) as error:
            raise ValueError(f"--launcher=slurm on {kind!r}: {' '.join(str(error).split())}") from error

    def each(self, work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """Every item as its job is done, and what `work` made of it or the exception it raised.

        On Ctrl-C the jobs stay; the same command waits for them.
        """
        jobs = {self._executor.submit(_Task(), work, item): (item, 0) for item in items}
        while jobs:
            for job in [job for job in jobs if job.done()]:
                (item, stops), found = jobs.pop(job), _outcome(job)
                if isinstance(found, loop.Interrupted) and stops < STOPS:
                    jobs[self._executor.submit(_Task(), work, item)] = (item, stops + 1)
                else:
                    yield item, found
            time.sleep(PAUSE if jobs else 0)


class _Task(submitit.helpers.Checkpointable):
    """What a job does; it may be sent again as it is."""

    def __call__(self, work: Callable[[Any], Any], item: Any) -> Any:
        start.process()
        try:
            return work(item)
        except Exception as error:
            return error


def _outcome(job: submitit.Job) -> Any:
    try:
        return job.result()
    except Exception as error:  # the job died, which says where its log is
        words = " ".join(str(error).split())
        return RuntimeError(f"job {job.job_id} failed: {words[:300]}; its log is {job.paths.stderr}")


def at_work(folder: Path) -> bool:
    """Whether a process, on whatever machine, is at work in a run folder."""
    if not (folder / ".lock").exists():
        return False
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            return False
    except filelock.Timeout:
        return True


def parameters(text: str) -> dict[str, Any]:
    """`timeout_min=60,slurm_partition=gpu` as values by name.

    Raises:
      ValueError: something that is no name=value.
    """
    found = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not (equals and name.strip().isidentifier()):
            raise ValueError(
                f"--slurm={text}: {part!r}, expected name=value, such as timeout_min=60,slurm_partition=gpu"
            )
        try:
            found[name.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name.strip()] = value
    return found
