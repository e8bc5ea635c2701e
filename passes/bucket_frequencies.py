"""Let memories that are due at the same ticks share one sweep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import networkx as nx

from nlc.graph.calculus import Coefficient
from nlc.graph.inverse import ridges_of
from nlc.graph.ir import Bucket, Flow, Learner, LevelGraph, size_of
from nlc.graph.linear import LinearForm, roles, sees_decayed
from nlc.graph.order import Node, downstream, tick_graph
from nlc.graph.outer import Outer, loss_levels, matrix_of
from nlc.passes.classify import is_memory
from nlc.passmanager import Numerics, Pass


@dataclass(frozen=True)
class BucketFrequencies(Pass):
    """Let memories that are due at the same ticks share one sweep.

    Before: one sweep over the tokens for each memory.
    After: one sweep for each bucket: memories of a block with the same clock, the same class and the same sizes, none of
    which needs another's value, run side by side as copies of one memory. Learners of the loss that are due at the same tokens by
    the same rule, of all blocks, are one bucket too: one update of all their tensors.
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
        made = (*_of_the_loss(graph),)
        made += tuple(
            Bucket(f"{b[0].scope}/{b[0].clock}".lstrip("/") + f".{i}", b[0].clock, tuple(m.id for m in b))
            for i, b in enumerate(buckets)
            if len(b) > 1 and b[0].clock
        )
        return graph.with_(buckets=made) if made else graph


def _of_the_loss(graph: LevelGraph) -> Iterator[Bucket]:
    """Learners of the loss with one period, one fold and one rule; their updates are atomic, of what was before all of them."""
    groups: dict[object, list[str]] = {}
    for level in loss_levels(graph):
        if not level.shared and not any(flow.op == "total" for flow in _rule_of(level).values()):
            groups.setdefault(_kind(level), []).append(level.owner.id)
    for members in groups.values():
        clock = graph.learners[members[0]].clock
        if len(members) > 1 and clock is not None:
            yield Bucket(f"loss/{clock}.{members[0]}", clock, tuple(members))


def _rule_of(level: Outer) -> dict[str, Flow]:
    """The flows of a rule that end in its step and its keep, in order."""
    used = level.graph.upstream(*level.ends)
    return {id: flow for id, flow in level.graph.flows.items() if id in used}


def _kind(level: Outer) -> object:
    """What two learners of the loss must have in common to be updated together; names of the rule are those within the learner."""
    name = f"{level.owner.id}."

    def own(x: object) -> object:
        return str(x).removeprefix(name) if str(x).startswith(name) else "" if x == level.owner.id else x

    flows = [
        (own(f.id), f.op, tuple(map(own, f.args)), tuple((k, own(v)) for k, v in f.attrs.items()), f.axes) for f in _rule_of(level).values()
    ]
    inner = [(own(m.id), m.axes, m.init, m.read, m.at, own(m.keep), own(m.rule.step), own(m.rule.keep), m.clock) for m in level.inner]
    owner = level.owner
    ends = tuple(map(own, (owner.keep, owner.rule.step, owner.rule.keep)))
    restart = {level.graph.learners[id].reset for id in owner.owns}
    every = tuple(level.graph.flows[id].attr("period") if id is not None else 0 for id in restart)
    kinds = tuple(matrix_of(level.graph.learners[id]) for id in owner.owns) if level.reads_rows else ()
    told = (owner.clock, owner.sharing, tuple(sorted(owner.fold.items())), owner.axes, owner.backprop.kind, owner.remainder, every, kinds)
    return told, ends, tuple(flows), tuple(inner)


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
