"""Let memories that are due at the same ticks share one sweep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import networkx as nx

from nlc.graph.calculus import Coefficient
from nlc.graph.inverse import ridges_of
from nlc.graph.ir import Bucket, Flow, Learner, LevelGraph, size_of
from nlc.graph.linear import LinearForm, roles, sees_decayed
from nlc.graph.order import Node, downstream, tick_graph
from nlc.passes.classify import is_memory
from nlc.passmanager import Numerics, Pass


@dataclass(frozen=True)
class BucketFrequencies(Pass):
    """Let memories that are due at the same ticks share one sweep.

    Before: one sweep over the tokens for each memory.
    After: one sweep for each bucket: memories of a block with the same clock, the same class and the same sizes, none of
    which needs another's value, run side by side as copies of one memory.
    """

    name: ClassVar[str] = "bucket-frequencies"
    numerics: ClassVar[Numerics] = Numerics.TOLERANCE
    bound: ClassVar[float] = 1e-12

    def run(self, graph: LevelGraph) -> LevelGraph:
        if graph.buckets:
            return graph
        tick = tick_graph(graph).copy()
        buckets: list[list[Learner]] = []
        memories = [m for m in graph.learners.values() if is_memory(m) and m.group is None and isinstance(m.linear, LinearForm)]
        signatures = {m.id: signature(graph, m) for m in memories}
        for learner in graph.learners.values():  # a sweep makes what is recalled of old states together with the new ones
            if is_memory(learner):
                tick.add_edges_from((("update", learner.id), ("flow", flow.id)) for flow in _recalls(graph, learner))
        for learner in memories:
            for bucket in buckets:
                if signatures[bucket[0].id] == signatures[learner.id] and _may_join(graph, tick, bucket, learner):
                    bucket.append(learner)
                    _contract(tick, bucket[0].id, learner.id)
                    break
            else:
                buckets.append([learner])
        made = tuple(
            Bucket(f"{b[0].scope}/{b[0].clock}".lstrip("/") + f".{i}", b[0].clock, tuple(m.id for m in b))
            for i, b in enumerate(buckets)
            if len(b) > 1 and b[0].clock
        )
        return graph.with_(buckets=made) if made else graph


def signature(graph: LevelGraph, learner: Learner) -> object:
    """What two memories must have in common to run as copies of one."""
    form = learner.linear
    assert isinstance(form, LinearForm)
    reads = tuple(sorted((f.attr("state"), bool(f.args), bool(f.attr("inverse"))) for f in _recalls(graph, learner)))
    sizes = (size_of(learner.store.in_axes), size_of(learner.store.out_axes))

    def kind(x: Coefficient) -> object:
        return x if not isinstance(x, str) else "channel" if x in form.wide else "gate"

    F = tuple(tuple(map(kind, row)) for row in form.F)
    writes = tuple(
        (tuple(map(kind, w.b)), None if w.c is None else tuple(map(kind, w.c)), sees_decayed(form, w), w.key is None) for w in form.writes
    )
    return (
        form.flipped,
        form.apart,
        learner.backprop,
        learner.scope,
        learner.clock,
        learner.samples,
        sizes,
        F,
        writes,
        form.log_keep is not None,
        reads,
        _pattern(graph, learner),
    )


def _pattern(graph: LevelGraph, learner: Learner) -> tuple[int, ...]:
    """Which of the flows that a sweep reads are the same: a key that is also the probe is one argument, not two."""
    recalls = sorted(_recalls(graph, learner), key=lambda f: (f.attr("state"), bool(f.args)))
    flows = [flow for _, flow in roles(learner.linear, [f.args[0] if f.args else None for f in recalls], ridges_of(recalls))]
    return tuple(flows.index(flow) for flow in flows)


def _recalls(graph: LevelGraph, learner: Learner) -> list[Flow]:
    return [f for f in graph.recalls.get(learner.id, ()) if f.attr("state") != "at"]


def _may_join(graph: LevelGraph, tick: nx.DiGraph[Node], bucket: list[Learner], learner: Learner) -> bool:
    """No path in either direction: neither needs what the other recalls or writes at this tick."""
    ours = {node for member in bucket for node in _nodes(graph, member)}
    theirs = set(_nodes(graph, learner))
    return not downstream(tick, ours) & theirs and not downstream(tick, theirs) & ours


def _nodes(graph: LevelGraph, learner: Learner) -> list[Node]:
    """A sweep makes the new state and all that is recalled from it, together."""
    return [("update", learner.id), *(("flow", f.id) for f in _recalls(graph, learner))]


def _contract(tick: nx.DiGraph[Node], first: str, second: str) -> None:
    """Make two updates one node for the paths that are looked for later."""
    for before in list(tick.predecessors(("update", second))):
        tick.add_edge(before, ("update", first))
    for after in list(tick.successors(("update", first))):
        if after != ("update", second):
            tick.add_edge(("update", second), after)
