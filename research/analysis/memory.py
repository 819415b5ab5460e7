"""What a training step holds in the memory of a device, by part, before anything runs; and what to change where that is
too much.

Arguments are exact: they are the shapes of the state and the batch. Temporaries are read from the jaxpr of the step,
see `liveness`; docs/budget.md says how far they are from what XLA allocates. What collectives and the runtime need
beside is not counted.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax

from research.analysis import liveness, program
from research.attention import platforms

USABLE = 0.8  # of a device's memory; the rest is for the runtime, collectives and the error of the estimate

GIB = 2**30
UNITS = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": GIB,
    "TiB": 2**40,
    "KB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "TB": 1e12,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device while a step runs.

    Attributes:
      parameters, optimizer, rest, batch: the arguments that the step reads, which are there all the time; `rest` is the
        key, the tunable numbers and, where they exist, averaged parameters, a loss scale and a memory.
      gradients, activations, working: the temporaries at the worst moment of the step. Gradients are arrays with the
        shape of a parameter (with their sums over microbatches, and copies of the weights in a narrow dtype),
        activations what waits for a later part of the step (with layers in a loop, what the forward pass saved for the
        backward pass), working what the running layer or operation takes.
      outputs: results that do not go into the memory of the old state.
    """

    parameters: int
    optimizer: int
    rest: int
    batch: int
    gradients: int
    activations: int
    working: int
    outputs: int

    @property
    def arguments(self) -> int:
        """State and batch."""
        return self.parameters + self.optimizer + self.rest + self.batch

    @property
    def temporaries(self) -> int:
        """What the step takes while it runs."""
        return self.gradients + self.activations + self.working

    @property
    def total(self) -> int:
        """All of it."""
        return self.arguments + self.temporaries + self.outputs


def measure(
    step: Callable[[Any, Any], tuple[Any, Any]], state: Any, batch: Any, *, platform: str | None = None
) -> Memory:
    """The memory of a step whose state is donated.

    Args:
      step: (state, batch) to (new state, metrics), not compiled.
      state: arrays or shapes, with fields `params` and `optimizer`. A leaf with a sharding counts by what a device
        holds of it, and so do arrays of its shape if it is a parameter.
      batch: arrays or shapes of what one device reads.
      platform: "cpu", "gpu" or "tpu"; None: the one JAX runs on.
    """
    platform = platform or platforms.platform()
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (state, batch))
    with platforms.compiling_for(platform):
        jaxpr, (new, metrics) = jax.make_jaxpr(step, return_shape=True)(*shapes)
    jaxpr, used = program.needed(jaxpr)
    parts = dict.fromkeys(("params", "optimizer", "batch", "rest"), 0)
    leaves = jax.tree_util.tree_leaves_with_path({"0": state, "batch": batch})
    for (path, leaf), read in zip(leaves, used, strict=True):
        part = "batch" if path[0].key == "batch" else jax.tree_util.keystr(path[1:2], simple=True)
        parts[part if part in parts else "rest"] += _held(leaf) if read else 0
    like: dict[tuple[int, ...], float] = {}
    for leaf in jax.tree.leaves(state.params):
        share = _held(leaf) / max(program.size(leaf), 1)
        like[leaf.shape] = max(share, like.get(leaf.shape, 0))
    peak = liveness.peak(jaxpr, platform, like)
    grown = sum(map(program.size, jax.tree.leaves(new))) - sum(map(program.size, jax.tree.leaves(state)))
    return Memory(
        parameters=parts["params"],
        optimizer=parts["optimizer"],
        rest=parts["rest"],
        batch=parts["batch"],
        gradients=peak.like,
        activations=peak.held,
        working=peak.working,
        outputs=sum(map(program.size, jax.tree.leaves(metrics))) + max(grown, 0),
    )


def classic(parameters: int, devices: int = 1) -> dict[str, float]:
    """Bytes of weights, gradients and Adam's state on one of the devices: 2 + 2 + 12 = 16 a parameter in mixed
    precision (12: float32 weights and two moments), of which ZeRO shares more and more (Rajbhandari et al. 2020,
    sections 3 and 5).
    """
    return {
        "every device holds all": 16.0 * parameters,
        "optimizer state shared (ZeRO-1)": (4 + 12 / devices) * parameters,
        "gradients too (ZeRO-2)": (2 + 14 / devices) * parameters,
        "weights too (ZeRO-3, FSDP)": 16 / devices * parameters,
    }


def classic_activations(*, rows: int, tokens: int, layers: int, width: int, heads: int, remat: str) -> float:
    """Bytes that layers with a dense 16-bit attention save for the backward pass: s b h (34 + 5 a s / h) each, or their
    input, 2 s b h, where everything is computed again (Korthikanti et al. 2022, equation 2 and section 5).
    """
    each = 2 if remat == "full" else 34 + 5 * heads * tokens / width
    return float(layers * tokens * rows * width * each)


Remat = Literal["none", "dots", "full"]
REMATS: tuple[Remat, ...] = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What decides how much memory a step takes, model and optimizer given.

    Attributes:
      batch: rows of a step, all devices together.
      remat: what the backward pass computes again; see `StackConfig`.
      accumulate: microbatches of a step.
      data, fsdp: devices that share the rows, each with all parameters, or with a part of them.
    """

    batch: int
    remat: Remat = "none"
    accumulate: int = 1
    data: int = 1
    fsdp: int = 1

    @property
    def multiple(self) -> int:
        """What the batch has to be a multiple of."""
        return self.accumulate * self.data * self.fsdp


Estimate = Callable[[Setting], int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advice:
    """What fits into a device.

    Attributes:
      setting, needed: as it is, and the bytes of a device.
      usable: bytes that may be used.
      largest: the largest batch that fits with everything else as it is; 0: none does.
      remedies: changes, each on top of those before, and what is needed then; the last one fits unless none did.
    """

    setting: Setting
    needed: int
    usable: int
    largest: int
    remedies: tuple[tuple[Setting, int], ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the setting fits as it is."""
        return self.needed <= self.usable


def advise(
    estimate: Estimate, setting: Setting, memory: float, *, limit: int = 2**14, devices: int = 2**13
) -> Advice:
    """The largest batch that fits, and what makes the setting fit if it does not: rematerialisation, then the least
    accumulation, then the least number of devices that share the parameters.

    Args:
      estimate: bytes of one device; fewer with fewer rows and more devices.
      setting: as it is.
      memory: bytes of a device, `USABLE` of which are used.
      limit: the largest batch to try.
      devices: the most devices to try.
    """
    estimate, usable = functools.cache(estimate), int(memory * USABLE)
    needed = estimate(setting)
    return Advice(
        setting=setting,
        needed=needed,
        usable=usable,
        largest=_largest(estimate, setting, usable, limit),
        remedies=() if needed <= usable else tuple(_remedies(estimate, setting, usable, devices)),
    )


def _largest(estimate: Estimate, setting: Setting, usable: int, limit: int) -> int:
    def needed(multiples: int) -> int:
        return estimate(dataclasses.replace(setting, batch=multiples * setting.multiple))

    good, bad = 0, limit // setting.multiple + 1
    each = max(needed(2) - needed(1), 1)
    guess, tries = 1, 0
    while bad - good > 1:
        # Memory grows about linearly, so a line is there sooner than halving, which is for the rest.
        guess = guess + (usable - needed(guess)) // each if tries < 6 else (good + bad) // 2
        guess, tries = min(max(guess, good + 1), bad - 1), tries + 1
        good, bad = (guess, bad) if needed(guess) <= usable else (good, guess)
    return good * setting.multiple


def _remedies(
    estimate: Estimate, setting: Setting, usable: int, devices: int
) -> Iterator[tuple[Setting, int]]:
    for remat in REMATS[REMATS.index(setting.remat) + 1 :]:
        setting = dataclasses.replace(setting, remat=remat)
        yield setting, estimate(setting)
        if estimate(setting) <= usable:
            return
    rows = setting.batch // (setting.data * setting.fsdp)
    parts = [
        k for k in range(setting.accumulate + 1, rows + 1) if rows % k == 0 and k % setting.accumulate == 0
    ]
    if parts:
        accumulated = [dataclasses.replace(setting, accumulate=k) for k in parts]
        setting = next((one for one in accumulated if estimate(one) <= usable), accumulated[-1])
        yield setting, estimate(setting)
        if estimate(setting) <= usable:
            return
    one = setting
    while one.data * one.fsdp * 2 <= devices:
        one = dataclasses.replace(one, fsdp=2 * one.fsdp, accumulate=max(1, one.accumulate // 2))
        one = dataclasses.replace(one, batch=-(-one.batch // one.multiple) * one.multiple)
        if estimate(one) <= usable:
            break
    if one != setting:
        yield one, estimate(one)


def parse(text: str) -> float:
    """Bytes of a text such as "80GiB" or "40 GB".

    Raises:
      ValueError: it is none; one line.
    """
    number = text.strip().rstrip("KMGTiBb").strip()
    unit = text.strip()[len(number) :].strip() or "B"
    try:
        value = float(number) * UNITS[unit]
    except (ValueError, KeyError):
        value = 0
    if not value > 0:
        raise ValueError(f"{text!r}: expected an amount of memory such as 80GiB or 16GB")
    return value


def _held(leaf: Any) -> int:
    """Bytes of a leaf that one device holds."""
    sharding = getattr(leaf, "sharding", None)
    shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize
