"""How the cells of a study are run together: alone, as ensembles, or in processes; whichever is faster here."""

import collections
import concurrent.futures
import contextlib
import itertools
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import jax
import numpy as np
from rich.console import Console

from experiments import experiment, machine, start
from experiments.experiment import Experiment
from research.training import hyperparameters, loop
from research.training.ensemble import Ensemble, Solo

STEPS = 20  # that a probe times
WARM = 3  # that it takes before, to compile
WORTH_A_PROBE = 120.0  # seconds of work below which a probe would cost more than it saves
PATIENCE = 60.0  # seconds in which a process that was told to stop saves
SLOW = 5e10  # FLOP/s of two cores on a small model, to tell how long work is before any is timed


def shapes(planned: Sequence[Experiment], data_dir: str | None) -> list[list[int]]:
    """The experiments, by index, grouped by the program that trains them."""
    found: dict[Any, list[int]] = {}
    for index, one in enumerate(planned):
        found.setdefault(_program(one, data_dir) or index, []).append(index)
    return list(found.values())


def _program(planned: Experiment, data_dir: str | None) -> Any:
    """What experiments of one ensemble share; None: it has to run alone, or does not run at all, as will be seen."""
    if _alone(planned):
        return None
    try:
        return _shared(planned, data_dir)
    except (ValueError, OSError, RuntimeError):
        return None


def _alone(planned: Experiment) -> bool:
    """Whether it can be in no ensemble: its data is chosen by its model, or it is spread over devices."""
    axes = (getattr(planned.parallelism, axis) for axis in ("fsdp", "tensor", "sequence"))
    return planned.data.hard is not None or any(axis != 1 for axis in axes)


def _shared(planned: Experiment, data_dir: str | None) -> tuple[Any, ...]:
    """The program, the shapes of its batches, and when it logs, evaluates and saves."""
    batch, vocab = experiment.example(planned, data_dir)
    leaves, structure = jax.tree.flatten(batch)
    return (
        planned.model,
        hyperparameters.form(planned.optimizer),
        hyperparameters.form(planned.recipe),
        vocab,
        planned.steps,
        planned.matmul_precision,
        planned.deterministic,
        planned.plan,
        structure,
        tuple((leaf.shape, leaf.dtype) for leaf in leaves),
    )


def worth_a_probe(planned: Sequence[Experiment], data_dir: str | None) -> bool:
    """Whether the experiments take so long that it pays to find out how to run them."""
    if len(planned) < 2:
        return False
    try:
        costs = [experiment.cost(one.model, one.data, data_dir).train_flops * one.steps for one in planned]
    except (ValueError, OSError, RuntimeError):  # one of them does not run, as will be seen
        return False
    return sum(costs) / SLOW > WORTH_A_PROBE


def speed(
    planned: Sequence[Experiment], data_dir: str | None, *, ready: Callable[[], Any] = lambda: None
) -> float:
    """Seconds for one step of all the experiments, trained together (or alone, if it is one); nothing is saved.

    `ready` is called between the steps that compile and the steps that are timed.
    """
    first = planned[0]
    text = experiment.dataset(first.data, data_dir)
    functions = experiment.trainer(first, text.tokenizer.vocab_size)
    placed = machine.placement(first) if len(planned) == 1 else None
    solo = Solo(functions, rows=first.data.batch, placement=placed)
    engine: Any = solo if len(planned) == 1 else Ensemble(functions, len(planned))
    on = np.ones(len(planned), bool)
    with contextlib.ExitStack() as stack:
        stack.enter_context(machine.surroundings(first, placed))
        streams = [
            stack.enter_context(contextlib.closing(experiment.dataset(one.data, data_dir).training(one.seed)))
            for one in planned
        ]
        group = engine.join([solo.initial(jax.random.key(one.seed), one.numbers) for one in planned])

        def take(steps: int, group: Any) -> Any:
            for _ in range(steps):
                group, _ = engine.step(group, engine.place([next(stream) for stream in streams]), on)
            return jax.block_until_ready(group)

        group = take(WARM, group)
        ready()
        began = time.perf_counter()
        take(STEPS, group)
        return (time.perf_counter() - began) / STEPS


class Workers:
    """Processes that share the cores, each with its own part of them.

    Use it as a context manager; a process is started when it first has something to do.
    """

    def __init__(self, count: int):
        self.count = count
        self._pool = self._begun()

    def _begun(self) -> concurrent.futures.ProcessPoolExecutor:
        # A forked JAX would hang, so workers are spawned.
        context = multiprocessing.get_context("spawn")
        places, barrier = context.SimpleQueue(), context.Barrier(self.count)
        cores = machine.cores()
        for index in range(self.count):
            places.put(cores[index * len(cores) // self.count : (index + 1) * len(cores) // self.count])
        return concurrent.futures.ProcessPoolExecutor(
            self.count, mp_context=context, initializer=_begin, initargs=(places, barrier)
        )

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is not None:  # what runs saves itself and ends
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
        self._pool.shutdown(wait=True)

    def speed(self, planned: Sequence[Experiment], data_dir: str | None) -> float:
        """Seconds for one step of an experiment in each worker at once."""
        turns = itertools.islice(itertools.cycle(planned), self.count)
        try:
            return max(self._pool.map(_probe, turns, itertools.repeat(data_dir)))
        except Exception:  # the barrier is broken, a process may have died
            self._renew()
            raise

    def _renew(self) -> None:
        """Other processes in place of these, which end when they are done or, told to stop, have saved."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.join(PATIENCE)
            process.kill()
        self._pool = self._begun()

    def each(self, work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """Every item as it is done, and what `work` made of it or the exception it raised.

        A process that is killed, as the system does when memory runs out, takes the others with it. What was under way
        in them is tried once more, each by itself: then there is more memory, and it is seen whose fault it was.

        Raises:
          loop.Interrupted: a worker was stopped.
        """
        lost = []
        for item, found in self._spread(work, items, self.count):
            if isinstance(found, BrokenProcessPool):
                lost.append(item)
            else:
                yield item, found
        for item, found in self._spread(work, lost, 1):
            if isinstance(found, BrokenProcessPool):
                found = RuntimeError("its process was killed twice, also alone; is there memory for it?")
            yield item, found

    def _spread(
        self, work: Callable[[Any], Any], items: Sequence[Any], width: int
    ) -> Iterator[tuple[Any, Any]]:
        """Every item as it is done, so many at a time; those that wait are not lost with a process that dies."""
        waiting, running = collections.deque(items), {}
        while waiting or running:
            while waiting and len(running) < width:
                item = waiting.popleft()
                running[self._submit(work, item)] = item
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                error = future.exception()
                if isinstance(error, loop.Interrupted) or not isinstance(error, Exception | None):
                    raise error
                yield running.pop(future), future.result() if error is None else error

    def _submit(self, work: Callable[[Any], Any], item: Any) -> concurrent.futures.Future[Any]:
        try:
            return self._pool.submit(work, item)
        except BrokenProcessPool:  # what was under way has been told
            self._renew()
            return self._pool.submit(work, item)


def _begin(places: Any, barrier: Any) -> None:
    """Bind a worker to its cores before XLA counts them.

    A signal that stops it is a run's to catch, which saves; between runs it ends the worker without a word.
    """
    global _together
    _together = barrier
    cores = places.get()
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
        os.environ["OMP_NUM_THREADS"] = str(len(cores))
    start.process()  # which takes SIGTERM as Ctrl-C
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


_together: Any = None


def _probe(planned: Experiment, data_dir: str | None) -> float:
    try:
        return speed([planned], data_dir, ready=_together.wait)
    except BaseException:
        _together.abort()  # nobody waits for one that will not come
        raise


def choose(
    planned: Sequence[Experiment], workers: Workers, members: int, data_dir: str | None, console: Console
) -> str:
    """The fastest of "alone", "ensemble" and "processes" for these experiments, by timing `STEPS` steps of each; where
    none of them works it is "alone", which will say why.

    On an accelerator processes would contend for it, so there only the first two are tried.
    """
    together = planned[:members]
    ways: dict[str, Callable[[], float]] = {
        "alone": lambda: speed(planned[:1], data_dir),
        "ensemble": lambda: speed(together, data_dir) / len(together),
    }
    if jax.default_backend() == "cpu" and workers.count > 1:
        ways["processes"] = lambda: workers.speed(planned, data_dir) / workers.count
    each = {}
    for way, measured in ways.items():
        try:
            each[way] = measured()
        except Exception as error:  # for instance, an ensemble for which there is no memory
            each[way] = math.inf
            console.print(f"{way}: {' '.join(str(error).split())[:160]}", highlight=False, markup=False)
    best = min(each, key=lambda way: each[way])
    shown = ", ".join(f"{way} {1e3 * value:.1f} ms" for way, value in each.items())
    console.print(f"a step of a cell: {shown}; so {best}", highlight=False)
    return best
