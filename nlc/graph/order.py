"""What must happen before what within one tick, and what follows from it: order, cycles, causality, levels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import networkx as nx

from nlc.diagnostics import Diagnostic
from nlc.graph import codes
from nlc.graph.ir import Clock, Flow, Learner, LevelGraph, moves_tensors

Node = tuple[str, str]
"""("flow", id) or ("update", id of a learner)."""


def upstream(needs: nx.DiGraph[Node], nodes: Iterable[Node]) -> set[Node]:
    """What these nodes need, themselves included."""
    return _reached(needs.predecessors, nodes)


def downstream(needs: nx.DiGraph[Node], nodes: Iterable[Node]) -> set[Node]:
    """What needs these nodes, themselves included."""
    return _reached(needs.successors, nodes)


def _reached(following: Callable[[Node], Iterable[Node]], nodes: Iterable[Node]) -> set[Node]:
    seen, stack = set(nodes), list(nodes)
    while stack:
        for node in following(stack.pop()):
            if node not in seen:
                seen.add(node)
                stack.append(node)
    return seen


def tick_graph(graph: LevelGraph) -> nx.DiGraph[Node]:
    """Flows and updates of one tick; an edge means "needs the value of this tick". Old states are no edges."""
    tick: nx.DiGraph[Node] = nx.DiGraph()
    for flow in graph.flows.values():
        tick.add_node(("flow", flow.id))
    for learner in graph.learners.values():
        if learner.writes:
            tick.add_node(("update", learner.id))
    for flow in graph.flows.values():
        for before in (*_needs(graph, flow), *_begins(graph, flow)):
            tick.add_edge(before, ("flow", flow.id))
    for learner in graph.learners.values():
        if learner.writes:
            needed = [flow for _, flow in graph.needs_of(learner)]
            if learner.rule.gradient is not None and learner.rule.gradient in graph.flows:
                needed.append(learner.rule.gradient)
            for id in needed:
                tick.add_edge(("flow", id), ("update", learner.id))
    return tick


def _begins(graph: LevelGraph, flow: Flow) -> Iterator[Node]:
    """Resets come first: a tensor that begins anew as a flow is read, in any version, after that flow and after what resets it."""
    if flow.op in ("recall", "tensor") and any(m.first is not None for m in graph.learners.values()):
        learner = graph.learners.get(str(flow.attr("learner")))
        if learner is not None and learner.writes:
            yield from (("flow", id) for id in (learner.reset, learner.first) if id is not None)


def _needs(graph: LevelGraph, flow: Flow) -> Iterator[Node]:
    for arg in flow.args:
        yield "flow", arg
    learner = graph.learners.get(str(flow.attr("learner")))
    if learner is None or not learner.writes:
        return
    if flow.op in ("recall", "tensor", "weights") and flow.attr("state") == "after":
        yield "update", learner.id
    elif flow.op == "erase" or (flow.op in ("recall", "tensor") and flow.attr("state") == "at" and learner.at == "decayed"):
        if learner.keep is not None:
            yield "flow", learner.keep
    elif flow.op in ("gradient", "proximal"):
        for kind, id in graph.needs_of(learner):
            if kind in ("key", "value", "objective") or (kind == "keep" and learner.at == "decayed"):
                yield "flow", id
    elif flow.op == "pred":
        key = next(write.key for write in learner.writes if write.pred == flow.id)
        if key is not None:
            yield "flow", key


def schedule(graph: LevelGraph, tick: nx.DiGraph[Node] | None = None) -> tuple[Node, ...]:
    """Flows and updates in an order in which they can run; among equals the order of the file, an update after what it needs."""
    tick = tick if tick is not None else tick_graph(graph)
    place: dict[Node, tuple[int, int]] = {("flow", id): (i, 0) for i, id in enumerate(graph.flows)}
    for i, id in enumerate(graph.learners, 1):
        if ("update", id) in tick:
            place["update", id] = (max((place[node][0] for node in tick.predecessors(("update", id))), default=0), i)
    return tuple(nx.lexicographical_topological_sort(tick, key=lambda node: place[node]))


def ordered(graph: LevelGraph, diagnostics: list[Diagnostic]) -> LevelGraph:
    """The graph with its flows in an order in which they can be computed; cycles and non-causal uses are reported."""
    tick = tick_graph(graph)
    try:
        order = [id for kind, id in schedule(graph, tick) if kind == "flow"]
    except nx.NetworkXUnfeasible:
        diagnostics.append(_cycle(graph, [edge[0] for edge in nx.find_cycle(tick)]))
        return graph
    diagnostics.extend(_non_causal(graph, tick))
    return graph.with_(flows={id: graph.flows[id] for id in order})


def _cycle(graph: LevelGraph, nodes: list[Node]) -> Diagnostic:
    shown = [text for kind, id in nodes if (text := _shown(graph, kind, id)) is not None] or [id for _, id in nodes]
    recalls = [graph.flows[id] for kind, id in nodes if kind == "flow" and graph.flows[id].op in ("recall", "tensor")]
    place = recalls[0] if recalls else graph.flows[nodes[0][1]]
    learner = graph.learners[recalls[0].attr("learner")].base if recalls else None
    help = f"`read: before` on `{learner}` lets this call see the state before the token" if learner else None
    firsts = {("flow", m.first) for m in graph.learners.values() if m.base == learner}
    if learner and firsts.intersection(nodes):
        help = f"a tensor begins anew before it is read: make the `init` of `{learner}` of other learners"
    return codes.TickCycle(f"a cycle within one tick: {' -> '.join([*shown, shown[0]])}", place.span, help)


def _shown(graph: LevelGraph, kind: str, id: str) -> str | None:
    """A node of a cycle in the words of the file: named flows, recalls and updates; None for what the compiler made."""
    if kind == "update":
        return f"update of {id}"
    flow = graph.flows[id]
    if flow.host is not None or flow.op == "number":
        return None
    if flow.op == "tensor":
        return str(flow.attr("learner"))
    if flow.op == "recall" and ":" in id:
        return f"{flow.attr('learner')}({', '.join(flow.args)})"
    return None if ":" in id else id


def _non_causal(graph: LevelGraph, tick: nx.DiGraph[Node]) -> Iterator[Diagnostic]:
    for flow in graph.flows.values():
        if flow.op != "next":
            continue
        reached = downstream(tick, [("flow", flow.id)])
        for name, output in graph.outputs:
            if ("flow", output) in reached:
                yield codes.NonCausal(f"the output `{name}` sees the next token", flow.span, "`next` may only feed `loss`")
        for learner in graph.learners.values():
            clock = effective_clock(graph, learner)
            from_the_loss = moves_tensors(graph.learners, learner.id)  # once the next token is known
            if ("update", learner.id) in reached and clock is not None and clock.unit == "token" and not from_the_loss:
                yield codes.NonCausal(f"the learner `{learner.id}` sees the next token", flow.span, "`next` may only feed `loss`")


@dataclass(frozen=True)
class DerivedLevel:
    """Learners of one frequency that do not need each other's new state (Nested Learning, Def. 2).

    `id` is `token/1.0`: the clock, the period, and the rank among the levels of this frequency, first to update first.
    """

    id: str
    clock: Clock | None
    learners: tuple[str, ...]


def effective_clock(graph: LevelGraph, learner: Learner) -> Clock | None:
    """The clock of a learner in units that do not depend on a host: the learner of a rule ticks with its host."""
    clock, at, count = learner.clock, learner, 1
    while clock is not None and clock.unit == "update" and at.host is not None:
        count *= clock.period
        at = graph.learners[at.host]
        clock = at.clock
    return clock if clock is None or count == 1 else Clock(clock.unit, clock.period * count)


def levels(graph: LevelGraph) -> tuple[DerivedLevel, ...]:
    """All levels, highest frequency first; tensors that nothing writes in context come last, as `never`."""
    ranks = _ranks(graph)
    groups: dict[tuple[int, int, int], list[str]] = {}
    for learner in graph.learners.values():
        mover = graph.learners[learner.owner or learner.joined or learner.id]
        changes = bool(mover.writes) or mover.solve is not None or mover.first is not None
        clock = effective_clock(graph, mover) if changes else None
        unit = {"token": 0, "step": 1}[clock.unit] if clock else 2
        groups.setdefault((unit, clock.period if clock else 0, ranks.get(mover.id, 0)), []).append(learner.id)
    found = []
    for (unit, period, rank), members in sorted(groups.items()):
        clock = (Clock("token", period), Clock("step", period), None)[unit]
        found.append(DerivedLevel(f"{clock.unit}/{period}.{rank}" if clock else "never", clock, tuple(members)))
    return tuple(found)


def _ranks(graph: LevelGraph) -> dict[str, int]:
    """How many updates of the same frequency each learner has to wait for."""
    tick = tick_graph(graph)
    below: dict[Node, dict[Clock, int]] = {}
    ranks: dict[str, int] = {}
    for node in schedule(graph, tick):
        best: dict[Clock, int] = {}
        for before in tick.predecessors(node):
            for known, depth in below[before].items():
                best[known] = max(best.get(known, 0), depth)
        if node[0] == "update":
            clock = effective_clock(graph, graph.learners[node[1]])
            if clock is not None:
                ranks[node[1]] = best.get(clock, 0)
                best[clock] = ranks[node[1]] + 1
        below[node] = best
    return ranks
