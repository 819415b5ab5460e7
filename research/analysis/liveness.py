"""How many bytes the temporaries of a program take at most, read from its jaxpr: nothing is compiled.

A value takes memory from the operation that makes it to the last one that reads it. XLA does not store them all:
elementwise operations are fused into those that read them, an operation may write over what it reads last, and a loop
holds what it carries once and, of its body, the worst moment. The same is done here by a few rules; `program` has those
that make operations of a jaxpr.

XLA:CPU runs breadth first, whatever is ready, to keep its cores busy; its matrix products read stored, row-major
arrays, so it makes transposed copies. Accelerators are taken to run in the order of the program and to compute the
operands of a product inside it.
"""

import dataclasses
import heapq
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from research.analysis.program import Body, Graph, Node, Value

_FUSING = ("cheap", "costly", "reduction", "update", "store")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peak:
    """Bytes of temporaries at the worst moment.

    Attributes:
      like: arrays of the shapes that were asked for (gradients and updates have those of the parameters).
      held: other values that wait outside the innermost loop that runs; with layers in a loop, what the forward pass
        saved for the backward pass.
      working: inside that loop, or made by the operation that runs.
    """

    like: int = 0
    held: int = 0
    working: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.like + self.held + self.working


def peak(jaxpr: Any, platform: str, like: Mapping[tuple[int, ...], float] | None = None) -> Peak:
    """The temporaries of a program whose outputs go into memory that it is given.

    Args:
      jaxpr: of the program, as `jax.make_jaxpr` returns it.
      platform: "cpu", "gpu" or "tpu".
      like: shapes, and which share of an array of that shape a device holds; `Peak.like` counts them.
    """
    graph = Graph(platform, like or {})
    opened = getattr(jaxpr, "jaxpr", jaxpr)
    outs = graph.run(opened, [graph.given(var.aval) for var in opened.invars])
    return _worst(Body(graph, [], [], []), written=outs)


def _worst(body: Body, *, written: Sequence[Value] = (), inside: bool = False) -> Peak:
    """The worst moment of a graph.

    Args:
      body: what runs.
      written: values that go into memory given for them.
      inside: the graph is a loop's body: all that it holds is work in progress.
    """
    plan = _Plan(body.graph, {*body.ends, *written})
    order = plan.schedule()
    last = {value: time for time, node in enumerate(order) for value in plan.reads[node]}
    last |= dict.fromkeys(plan.sources(body.ends), len(order))
    given = plan.sources(written)
    alive: dict[Value, int] = {}
    totals = {True: 0, False: 0}  # bytes of values of the shapes asked for, and of others

    def keep(value: Value, amount: int) -> None:
        alive[value] = amount
        totals[value.like] += amount

    def drop(values: Iterable[Value]) -> None:
        for value in values:
            totals[value.like] -= alive.pop(value, 0)

    for value in body.owned:
        keep(value, value.size)
    worst = Peak(like=totals[True], working=totals[False])
    drop([value for value in body.owned if value not in last])
    for time, node in enumerate(order):
        dying = [value for value in plan.reads[node] if last[value] == time and value in alive]
        made = {value: 0 if value in given else value.size for value in node.makes if value in plan.stored}
        reusable = dying
        if node.kind not in _FUSING:
            allowed = plan.sources(node.reads[i] for i in node.reuses)
            reusable = [value for value in dying if value in allowed]
        if node.kind == "loop":
            drop(reusable)  # their memory is the body's
            for value in node.makes[node.inside :]:
                if value in made:
                    keep(value, made[value])
            now = max((_worst(turn, inside=True) for turn in node.bodies), key=_total)
        else:
            room = [alive[value] for value in reusable]
            for amount in made.values():
                if amount in room:
                    room.remove(amount)
            now = Peak(working=sum(made.values()) - sum(alive[value] for value in reusable) + sum(room))
        held, working = totals[False] + now.held, now.working
        if inside and node.kind != "loop":
            held, working = 0, held + working
        worst = max(worst, Peak(like=totals[True] + now.like, held=held, working=working), key=_total)
        for value, amount in made.items():
            if value in last and value not in alive:
                keep(value, amount)
        drop([value for value in (*dying, *made) if last.get(value, time) <= time])
    return worst


def _total(peak: Peak) -> int:
    return peak.total


class _Plan:
    """Which values of a graph are stored, what each operation reads of them, and in which order they run."""

    def __init__(self, graph: Graph, ends: set[Value]):
        self._cpu = graph.platform == "cpu"
        self._sources: dict[Value, dict[Value, None]] = {}
        self._computed: dict[Value, dict[Value, None]] = {}
        made = [(node, value) for node in graph.nodes if node.kind != "view" for value in node.makes]
        self.stored = {value for node, value in made if self._is_stored(node, value, ends)}
        self.reads: dict[Node, dict[Value, None]] = {}
        for node in graph.nodes:
            if node.kind == "store" or any(value in self.stored for value in node.makes):
                read = self._read_inside if self._fuses(node) else self._made_of
                self.reads[node] = {source: None for value in node.reads for source in read(value)}

    def sources(self, values: Iterable[Value]) -> set[Value]:
        """The stored values that these are made of."""
        return {source for value in values for source in self._made_of(value)}

    def schedule(self) -> list[Node]:
        """The operations, each after those that it reads from."""
        needs: dict[Node, set[Node]] = {
            node: {value.maker for value in read if value.maker is not None}
            for node, read in self.reads.items()
        }
        followers: dict[Node, list[Node]] = {node: [] for node in needs}
        for node, makers in needs.items():
            for maker in makers:
                followers[maker].append(node)
        place: dict[Node, float] = {node: index for index, node in enumerate(needs)}
        for node, makers in needs.items():
            if node.kind == "store":
                place[node] = -1  # at once
            elif not makers and followers[node]:
                place[node] = min(place[after] for after in followers[node]) - 0.5  # not before it is read
        arrivals = itertools.count()
        ready: list[tuple[float, int, Node]] = []

        def push(node: Node) -> None:
            arrival = next(arrivals)
            heapq.heappush(ready, (arrival if self._cpu else place[node], arrival, node))

        waiting = {node: len(makers) for node, makers in needs.items()}
        for node, count in waiting.items():
            if not count:
                push(node)
        order = []
        while ready:
            *_, node = heapq.heappop(ready)
            order.append(node)
            for after in followers[node]:
                waiting[after] -= 1
                if not waiting[after]:
                    push(after)
        return order

    def _fuses(self, node: Node) -> bool:
        return node.kind in _FUSING or (node.kind == "product" and not self._cpu)

    def _is_stored(self, node: Node, value: Value, ends: set[Value]) -> bool:
        if node.kind not in ("cheap", "costly"):
            return True
        readers, is_end = value.read_by(ends)
        if is_end or not all(map(self._fuses, readers)):
            return True
        if len(readers) < 2:
            return False
        widened = node.name == "broadcast_in_dim" and value.size > sum(read.size for read in node.reads)
        return node.kind == "costly" or node.name == "row" or (self._cpu and widened)

    def _made_of(self, value: Value) -> dict[Value, None]:
        """The stored values that a value is made of; itself, if it is stored."""
        if value not in self._sources:
            if value.maker is None or value in self.stored:
                found = {value: None}
            else:
                found = {source: None for read in value.origin() for source in self._made_of(read)}
            self._sources[value] = found
        return self._sources[value]

    def _read_inside(self, value: Value) -> dict[Value, None]:
        """The stored values that an operation reads which fuses the value: a cheap one it computes for itself, even
        where the value is stored for another reader.
        """
        if value not in self._computed:
            maker = value.maker
            if maker is None:
                found = {value: None}
            elif value not in self.stored:
                found = {source: None for read in value.origin() for source in self._read_inside(read)}
            elif maker.kind == "cheap" and maker.name not in ("row", "copy", "broadcast_in_dim"):
                found = {source: None for read in maker.reads for source in self._made_of(read)}
            else:
                found = {value: None}
            self._computed[value] = found
        return self._computed[value]
