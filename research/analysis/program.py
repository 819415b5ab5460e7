"""A jaxpr as operations and the values between them: calls inlined, equal operations one, loops with their bodies.

How an operation is treated is its *kind*:

  view        costs nothing
  cheap       elementwise, slices, broadcasts: fused into what reads it, once for each reader
  costly      fused as well, but not computed twice
  reduction   fuses what it reads
  update      fuses what it reads and writes over its first operand
  store       a row of a stacked result, written as soon as it is there
  product     a matrix product
  loop        a loop, or a choice between branches
  opaque      anything else
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval

_PRIMITIVES = {
    "view": "reshape squeeze expand_dims copy name sharding_constraint pvary optimization_barrier",
    "cheap": (
        "abs add add_any and bitcast_convert_type broadcast_in_dim ceil clamp concatenate convert_element_type "
        "dynamic_slice eq exp2 floor ge gt imag integer_pow iota is_finite le lt max min mul ne neg nextafter not or "
        "pad population_count real reduce_precision rev round select_n shift_left shift_right_arithmetic "
        "shift_right_logical sign slice split square stack sub transpose xor"
    ),
    "costly": "cbrt cos div erf erf_inv exp expm1 log log1p logistic pow rem rsqrt sin sqrt tan tanh",
    "reduction": "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum",
    "update": "dynamic_update_slice",
    "product": "dot_general",
}
KINDS = {name: kind for kind, names in _PRIMITIVES.items() for name in names.split()}
BARRIER = "optimization_barrier"  # nothing is fused across it
LANES = 128  # of a TPU's vectors, which the last axis of an array fills
PURE = ("cheap", "costly", "reduction", "product")


def needed(jaxpr: Any) -> tuple[Any, list[bool]]:
    """The jaxpr without what no output depends on, and which of its arguments are left: `jax.jit` drops the others."""
    opened = getattr(jaxpr, "jaxpr", jaxpr)
    return partial_eval.dce_jaxpr(opened, [True] * len(opened.outvars))


def size(aval: Any) -> int:
    """Bytes of an abstract value."""
    dtype = getattr(aval, "dtype", None)
    return 0 if dtype is None or dtype == jax.dtypes.float0 else math.prod(aval.shape) * dtype.itemsize


def scanned(eqn: Any) -> tuple[int, int]:
    """How many of a scan's inputs are constants, and how many it carries (its parameters say so in every version of JAX
    differently): all others have one axis less inside.
    """
    inner = getattr(eqn.params["jaxpr"], "jaxpr", eqn.params["jaxpr"])
    whole = [var.aval.ndim == own.aval.ndim for var, own in zip(eqn.invars, inner.invars, strict=True)]
    carried = [var.aval.ndim == own.aval.ndim for var, own in zip(eqn.outvars, inner.outvars, strict=True)]
    return sum(whole) - sum(carried), sum(carried)


@dataclasses.dataclass(eq=False)
class Value:
    """An array.

    Attributes:
      size: bytes of it that a device holds.
      shape, dtype: of the whole.
      like: its shape is one of those that the graph was asked to tell apart.
      maker: the operation that makes it; None: an argument, or what a loop carries.
      readers: the operations that read it.
    """

    size: int
    shape: tuple[int, ...] = ()
    dtype: Any = None
    like: bool = False
    maker: "Node | None" = None
    readers: list["Node"] = dataclasses.field(default_factory=list)

    def origin(self) -> list["Value"]:
        """What it is made of; a view of several arrays is made of its own."""
        assert self.maker is not None
        if self.maker.kind != "view":
            return self.maker.reads
        return [self.maker.reads[self.maker.makes.index(self)]]

    def read_by(self, ends: set["Value"]) -> tuple[set["Node"], bool]:
        """The operations that read it or a view of it, and whether one of these is stored: it is among the `ends`, or
        behind a barrier.
        """
        readers, is_end = set(), self in ends
        for node in self.readers:
            if node.kind != "view":
                readers.add(node)
                continue
            is_end = is_end or node.name == BARRIER
            for read, view in zip(node.reads, node.makes, strict=False):
                if read is self:
                    others, end = view.read_by(ends)
                    readers, is_end = readers | others, is_end or end
        return readers, is_end


@dataclasses.dataclass(eq=False)
class Node:
    """An operation.

    Attributes:
      name, kind: of its primitive.
      reads, makes: operands and results.
      bodies: of a loop; of a choice, its branches.
      reuses: operands whose memory its results may take.
      inside: how many of its results, from the first, are the ends of its body.
      order: of the axes, where it transposes.
    """

    name: str
    kind: str
    reads: list[Value]
    makes: list[Value]
    bodies: list["Body"] = dataclasses.field(default_factory=list)
    reuses: range = range(0)
    inside: int = 0
    order: tuple[int, ...] | None = None


@dataclasses.dataclass(eq=False)
class Body:
    """What a loop does in a turn: with the memory of what it carries (`owned`, at the end `ends`), but not of its
    constants nor of the stacked arrays that it reads `rows` of and stores rows in.
    """

    graph: "Graph"
    owned: list[Value]
    ends: list[Value]
    rows: list[Value]


class Graph:
    """The operations of a jaxpr, in its order.

    Args:
      platform: whose branches are taken; "cpu" also says how products read their operands.
      like: shapes to tell apart, and which share of such an array a device holds.
    """

    def __init__(self, platform: str, like: Mapping[tuple[int, ...], float]):
        self.platform, self.like = platform, like
        self.nodes: list[Node] = []
        self._same: dict[Any, list[Value]] = {}
        self._literals: dict[str, Value] = {}

    def given(self, aval: Any) -> Value:
        """A value that no operation makes."""
        shape, dtype = getattr(aval, "shape", ()), getattr(aval, "dtype", None)
        held = size(aval) * self.like.get(shape, 1)
        if self.platform == "tpu" and len(shape) > 1 and LANES // 8 <= shape[-1] < LANES:
            held *= LANES / shape[-1]  # smaller axes are laid out elsewhere
        return Value(int(held), shape, dtype, shape in self.like)

    def add(
        self, name: str, kind: str, reads: Sequence[Value], avals: Iterable[Any], key: Any = None, **more: Any
    ) -> list[Value]:
        """The results of an operation; with a `key`, those of an equal one if there is one."""
        key = None if key is None else (name, key, tuple(map(id, reads)))
        if key in self._same:
            return self._same[key]
        node = Node(name, kind, list(reads), [], **more)
        node.makes = [dataclasses.replace(self.given(aval), maker=node) for aval in avals]
        for value in dict.fromkeys(reads):
            value.readers.append(node)
        self.nodes.append(node)
        if key is not None:
            self._same[key] = node.makes
        return node.makes

    def run(self, jaxpr: Any, arguments: Sequence[Value]) -> list[Value]:
        """Add a jaxpr's operations; the values of its outputs."""
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        known = dict(zip(jaxpr.invars, arguments, strict=True))
        known |= {var: self.given(var.aval) for var in jaxpr.constvars}

        def value(var: Any) -> Value:
            if isinstance(var, core.Literal):
                return self._literals.setdefault(repr(var.val), Value(0))
            return known[var]

        for eqn in jaxpr.eqns:
            known.update(zip(eqn.outvars, self._equation(eqn, [value(v) for v in eqn.invars]), strict=True))
        return [value(var) for var in jaxpr.outvars]

    def _equation(self, eqn: Any, reads: list[Value]) -> list[Value]:
        name, params = eqn.primitive.name, eqn.params
        avals = [var.aval for var in eqn.outvars]
        if name == "scan":
            return self._scan(eqn, reads, avals)
        if name == "while":
            constants, reads = params["body_nconsts"], reads[params["cond_nconsts"] :]
            body = self._body(params["body_jaxpr"], constants, len(avals))
            reuses = range(constants, len(reads))
            return self.add(name, "loop", reads, avals, bodies=[body], reuses=reuses, inside=len(avals))
        if name == "cond":
            platforms = params.get("branches_platforms")
            if platforms is not None:  # `jax.lax.platform_dependent`
                chosen = next(
                    i for i, names in enumerate(platforms) if names is None or self.platform in names
                )
                return self.run(params["branches"][chosen], reads[1:])
            bodies = [self._branch(branch) for branch in params["branches"]]
            return self.add(name, "loop", reads, avals, bodies=bodies, inside=len(avals))
        inner = params.get("jaxpr", params.get("call_jaxpr"))
        if inner is not None and name != "pallas_call":
            again = params.get("prevent_cse") and params.get("differentiated")  # equal, not the same
            if again and self.platform != "cpu":  # XLA:CPU heeds no barrier
                barrier = zip(reads, eqn.invars, strict=True)
                reads = [self.add(BARRIER, "view", [read], [var.aval])[0] for read, var in barrier]
            return self.run(inner, reads)
        if name == "dot_general" and self.platform == "cpu":
            reads = self._row_major(eqn, reads)
        kind = KINDS.get(name, "opaque")
        more: dict[str, Any] = {}
        if name == "transpose":
            more["order"] = tuple(params["permutation"])
        if kind == "update" or name.startswith("scatter"):
            more["reuses"] = range(1)
        if kind in PURE:
            more["key"] = str(sorted((k, str(v)) for k, v in params.items() if k != "sharding"))
        return self.add(name, kind, reads, avals, **more)

    def _scan(self, eqn: Any, reads: list[Value], avals: list[Any]) -> list[Value]:
        (constants, carried), params = scanned(eqn), eqn.params
        length, unroll, jaxpr = params["length"], params["unroll"], params["jaxpr"]
        start = constants + carried
        if length > unroll:
            body, reuses = self._body(jaxpr, constants, carried, turns=unroll), range(constants, start)
            reads = [*reads[:start], *map(self._converted, reads[start:], body.rows)]
            return self.add("scan", "loop", reads, avals, bodies=[body], reuses=reuses, inside=carried)
        kind = "view" if length == 1 else "cheap"
        carry, stacked = reads[constants:start], []
        for turn in reversed(range(length)) if params["reverse"] else range(length):
            lines = zip(reads[start:], _inputs(jaxpr)[start:], strict=True)
            rows = [self.add("slice", kind, [read], [var.aval], key=turn)[0] for read, var in lines]
            outs = self.run(jaxpr, [*reads[:constants], *carry, *rows])
            carry, stacked = outs[:carried], [*stacked, outs[carried:]]
        lines = zip(zip(*stacked, strict=True), avals[carried:], strict=True)
        return [*carry, *(self.add("stack", kind, rows, [aval])[0] for rows, aval in lines)]

    def _converted(self, stacked: Value, row: Value) -> Value:
        """The stacked array that a loop reads a row of in each turn. Where all that is done with a row is to convert it
        to another dtype, XLA converts the array before the loop.
        """
        if [node.name for node in row.readers] != ["convert_element_type"]:
            return stacked
        dtype = row.readers[0].makes[0].dtype
        whole = jax.ShapeDtypeStruct(stacked.shape, dtype)
        return self.add("convert_element_type", "opaque", [stacked], [whole], key=str(dtype))[0]

    def _body(self, jaxpr: Any, constants: int, carried: int, turns: int = 1) -> Body:
        graph, inputs = Graph(self.platform, self.like), _inputs(jaxpr)
        given = [graph.given(var.aval) for var in inputs[: constants + carried]]
        carry = given[constants:]
        for turn in range(turns):
            lines = enumerate(inputs[len(given) :])
            rows = [graph.add("row", "cheap", [], [var.aval], key=(turn, i))[0] for i, var in lines]
            outs = graph.run(jaxpr, [*given[:constants], *carry, *rows])
            carry = outs[:carried]
            for out in outs[carried:]:
                graph.add("store", "store", [out], [])
        return Body(graph, given[constants:], carry, rows)

    def _branch(self, jaxpr: Any) -> Body:
        graph = Graph(self.platform, self.like)
        return Body(graph, [], graph.run(jaxpr, [graph.given(var.aval) for var in _inputs(jaxpr)]), [])

    def _row_major(self, eqn: Any, reads: list[Value]) -> list[Value]:
        """Operands of a product as XLA:CPU wants them: [batch, rows, sum] and [batch, sum, columns]."""
        (left, right), batch = eqn.params["dimension_numbers"]
        ordered = []
        for side, (read, var) in enumerate(zip(reads, eqn.invars, strict=True)):
            summed, shared = (left, right)[side], batch[side]
            free = [axis for axis in range(var.aval.ndim) if axis not in (*summed, *shared)]
            order = [*shared, *((*free, *summed), (*summed, *free))[side]]
            if read.maker is not None and read.maker.order is not None:
                # A transposed array: what counts is the order of the one before.
                order, read = [read.maker.order[axis] for axis in order], read.maker.reads[0]
            real = [axis for axis in order if read.shape[axis] > 1]
            if real != sorted(real):
                (read,) = self.add("copy", "cheap", [read], [var.aval], key=tuple(order))
            ordered.append(read)
        return ordered


def _inputs(jaxpr: Any) -> list[Any]:
    return getattr(jaxpr, "jaxpr", jaxpr).invars
