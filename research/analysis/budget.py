"""What a model costs, counted from its trace: parameters, and FLOPs with attention by visible pairs.

*Model FLOPs* are the multiplications and additions of every matrix product times the trip counts of the scans
around it. Attention counts as one operation of 2 (d + e) FLOPs for each visible (query, key) pair and head,
whatever its backend computes. A training step is three forward passes (the backward pass has two products for
each one of the forward); what it recomputes is not counted. A memory is counted full: see `Recurrent.full`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from research.analysis.program import scanned
from research.attention.masks import Mask, Slots, visible_pairs
from research.attention.memory import Layer, Reading
from research.attention.recurrence import Recurrence, Recurrent, RecurrentReader
from research.batch import Batch
from research.models.config import StackConfig
from research.models.encoder_decoder import EncoderDecoder
from research.models.families import FamilyConfig, Model

BACKWARD = 2  # FLOPs of a backward pass in forward passes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """The cost of one batch, averaged over the batches it was counted on.

    Attributes:
      parameters: number of parameters.
      forward_flops: of one forward pass.
      attention_flops: its share of attention, by visible pairs.
      train_flops: of one training step.
      tokens: tokens read, source and target, padding excluded.
      loss_tokens: targets, by weight.
    """

    parameters: int
    forward_flops: float
    attention_flops: float
    train_flops: float
    tokens: float
    loss_tokens: float

    @property
    def backward_flops(self) -> float:
        """Of one backward pass."""
        return self.train_flops - self.forward_flops

    @property
    def attention_share(self) -> float:
        """Of attention in all model FLOPs."""
        return self.attention_flops / self.forward_flops

    @property
    def flops_per_token(self) -> float:
        """Training FLOPs for each token read."""
        return self.train_flops / self.tokens


def count(config: FamilyConfig, *, vocab: int, batches: Sequence[Batch]) -> Budget:
    """The budget of the model `config` builds, on real batches (NumPy arrays of equal shapes)."""
    recorder = _Recorder()
    recorded = _with_backend(config, recorder)
    model = jax.eval_shape(lambda: recorded.build(vocab=vocab, key=jax.random.key(0)))
    forward, pairs = [], []
    for batch in batches:
        recorder.calls.clear()
        products, calls = _count(_forward(model, batch))
        pairs.append(sum(times * recorder.calls[i].flops() for i, times in calls.items()))
        forward.append(products + pairs[-1])
    flops = float(np.mean(forward))
    return Budget(
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model)),
        forward_flops=flops,
        attention_flops=float(np.mean(pairs)),
        train_flops=(1 + BACKWARD) * flops,
        tokens=float(np.mean([tokens_read(batch) for batch in batches])),
        loss_tokens=float(np.mean([batch.weights.sum() for batch in batches])),
    )


def _forward(model: Model, batch: Batch) -> Any:
    """The jaxpr of a forward pass. The batch is closed over, not traced, and what follows from it is computed at once:
    so the slots that reach `attend` are values. A memory is full, as it is at a later step of the stream.
    """
    stack = model.decoder if isinstance(model, EncoderDecoder) else model.stack
    config, memory = stack.config, stack.config.memory
    held = None
    if memory is not None:
        rows, n = batch.labels.shape
        counts, dtype = stack.counts(), config.compute_dtype
        held = jax.eval_shape(lambda: memory.empty(rows, config.width, counts, dtype))
        target, steps = batch.target, -(-memory.reach // n)
        slots = dataclasses.replace(target.slots, position=target.slots.position + steps * n)
        batch = dataclasses.replace(batch, target=dataclasses.replace(target, slots=slots))

    def forward(model: Model, states: Any) -> jax.Array:
        with jax.ensure_compile_time_eval():
            carry = None if held is None else _Full(held.slots, states, held.spec)
            return model.logits(model.apply(batch, carry=carry).hidden)

    trace = jax.make_jaxpr(forward)(model, held and held.layers)
    return getattr(trace, "jaxpr", trace)


class _Full(Recurrence):
    """A full memory."""

    def reader(self, slots: Slots) -> RecurrentReader:
        return _Reader(slots, self.spec)


class _Reader(RecurrentReader):
    """Reads a full memory. A scan over the layers would trace the slots that they hold; here they are values."""

    def __init__(self, queries: Slots, spec: Recurrent):
        recent, self._older = spec.full(queries)
        super().__init__(queries, recent, spec)

    def read(self, state: Any, x: jax.Array, layer: Layer) -> Reading:
        recent, older = state
        return super().read((recent, older and (older[0], self._older)), x, layer)


def tokens_read(batch: Batch) -> int:
    """Tokens of source and target, padding excluded."""
    lines = [batch.target] if batch.source is None else [batch.source, batch.target]
    return sum(int(np.count_nonzero(line.slots.segment)) for line in lines)


@dataclasses.dataclass(frozen=True)
class _Call:
    """One `attend` in the trace."""

    mask: Mask
    q: Slots
    k: Slots
    per_pair: int

    def flops(self) -> int:
        return self.per_pair * visible_pairs(self.mask, self.q, self.k)


class _Recorder:
    """An attention backend that computes nothing: it notes its calls and leaves a mark in the trace."""

    def __init__(self):
        self.calls: list[_Call] = []

    def __call__(
        self, q: Any, k: Any, v: Any, *, mask: Mask, q_slots: Slots, k_slots: Slots, **_: Any
    ) -> tuple[jax.Array, jax.Array]:
        heads = q.shape[-2]

        def mark(q: Any, v: Any) -> tuple[jax.Array, jax.Array]:
            return jnp.zeros((*q.shape[:-1], v.shape[-1])), jnp.zeros((*q.shape[:-3], heads, q.shape[-3]))

        mark.__name__ = f"attend_{len(self.calls)}"
        self.calls.append(_Call(mask, q_slots, k_slots, 2 * heads * (q.shape[-1] + v.shape[-1])))
        return jax.jit(mark)(q, v)


def _with_backend(config: Any, backend: Any) -> Any:
    """The config with every stack's attention backend replaced."""
    if isinstance(config, StackConfig):
        return dataclasses.replace(config, backend=backend)
    stacks = {
        field.name: _with_backend(getattr(config, field.name), backend)
        for field in dataclasses.fields(config)
        if isinstance(getattr(config, field.name), StackConfig)
    }
    return dataclasses.replace(config, **stacks)


def _count(jaxpr: Any, depends: Sequence[bool] | None = None) -> tuple[int, dict[int, int]]:
    """FLOPs of the matrix products, and how often each marked attention runs. `depends`: which arguments have
    parameters in them (None: all); products of what has none, such as angles, are not the model's.
    """
    flops, calls = 0, {}
    known = dict(zip(jaxpr.invars, depends or [True] * len(jaxpr.invars), strict=True))

    def add(inner: Any, inputs: list[bool], times: int) -> None:
        nonlocal flops
        products, marked = _count(inner, inputs if len(inputs) == len(inner.invars) else None)
        flops += times * products
        for index, count in marked.items():
            calls[index] = calls.get(index, 0) + times * count

    for eqn in jaxpr.eqns:
        name = str(eqn.params.get("name", ""))
        inputs = [not isinstance(var, core.Literal) and known.get(var, False) for var in eqn.invars]
        known |= dict.fromkeys(eqn.outvars, any(inputs))
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            flops += any(inputs) * 2 * depth * math.prod(eqn.outvars[0].aval.shape)
        elif name.startswith("attend_"):
            index = int(name.removeprefix("attend_"))
            calls[index] = calls.get(index, 0) + 1
        else:
            if eqn.primitive.name == "scan":  # what is carried depends on all that comes in
                start, carried = scanned(eqn)
                inputs[start : start + carried] = [any(inputs)] * carried
            for value in eqn.params.values():
                for inner in value if isinstance(value, tuple | list) else (value,):
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        add(inner, inputs, eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1)
    return flops, calls
