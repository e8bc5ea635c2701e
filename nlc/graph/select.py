"""Neighbourhoods of the level graph: `S`, `1+S` (one step upstream), `S+2` (two steps downstream), `+S+` (all of both).

A step leads from one named thing to the next: a flow with the parts of its expression is one thing, and so is a learner with its
objective, gradient and step. What an outer learner owns counts only beside that learner or the tensor asked for; else everything
would lie upstream of everything, by way of the last training step.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import networkx as nx

from nlc.diagnostics import UsageError
from nlc.graph.edges import Node, edges
from nlc.graph.equations import local
from nlc.graph.ir import Flow, LevelGraph
from nlc.language.wording import did_you_mean, quoted

PATTERN = re.compile(r"(?:(?P<up>[0-9]*)(?P<left>\+))?(?P<name>[^+\s]+)(?:(?P<right>\+)(?P<down>[0-9]*))?")


@dataclass(frozen=True)
class Selection:
    """A part of a graph, by ids."""

    flows: frozenset[str]
    learners: frozenset[str]

    def part_of(self, graph: LevelGraph) -> LevelGraph:
        """What is left of a graph when the rest is not shown. It may name what it does not hold: it is for printing only."""
        flows = {id: flow for id, flow in graph.flows.items() if id in self.flows}
        called = {flow.attr("function") for flow in flows.values()}
        return graph.with_(
            flows=flows,
            learners={id: learner for id, learner in graph.learners.items() if id in self.learners},
            inputs=tuple(id for id in graph.inputs if id in flows),
            outputs=tuple((name, id) for name, id in graph.outputs if id in flows),
            loss=graph.loss if graph.loss in flows else None,
            functions={name: function for name, function in graph.functions.items() if name in called},
            buckets=tuple(bucket for bucket in graph.buckets if not self.learners.isdisjoint(bucket.learners)),
        )


def select(graph: LevelGraph, patterns: Iterable[str]) -> Selection:
    """The union of some neighbourhoods. Raises UsageError for a pattern of another form and for an unknown name."""
    owners = {flow.id: _owner(graph, flow) for flow in graph.flows.values() if not flow.id.startswith("#")}
    things = _things(graph, owners)
    chosen: set[Node] = set()
    for pattern in patterns:
        found = PATTERN.fullmatch(pattern)
        if found is None:
            raise UsageError(f"{quoted(pattern)} is no selection; write `S`, `1+S`, `S+2`, or `+S` for all that is upstream")
        for thing in _named(graph, owners, things, found["name"]):
            chosen.add(thing)
            if found["left"]:
                chosen |= _reached(things, thing, found["up"], upstream=True)
            if found["right"]:
                chosen |= _reached(things, thing, found["down"], upstream=False)
    flows = {id for id, owner in owners.items() if owner in chosen}
    numbers = {arg for id in flows for arg in graph.flows[id].args if arg not in owners}
    return Selection(frozenset(flows | numbers), frozenset(id for kind, id in chosen if kind == "learner"))


def _owner(graph: LevelGraph, flow: Flow) -> Node:
    """The named thing a flow is a part of: the learner whose update it belongs to, the flow whose expression it is in, itself."""
    stem = local(flow.id, flow.scope).partition(":")[0]
    scope = f"{flow.scope}." if flow.id.startswith(f"{flow.scope}.") else ""
    parts = stem.split(".")
    for end in range(len(parts) - 1, 0, -1):
        id = scope + ".".join(parts[:end])
        if id in graph.learners:
            return "learner", id
    if flow.host is not None:
        return "learner", flow.host
    return "flow", scope + stem if scope + stem in graph.flows else flow.id


def _things(graph: LevelGraph, owners: dict[str, Node]) -> nx.MultiDiGraph[Node]:
    """The level graph with every part drawn into the thing it is a part of."""
    things: nx.MultiDiGraph[Node] = nx.MultiDiGraph()
    things.add_nodes_from(owners.values())
    things.add_nodes_from(("learner", id) for id in graph.learners)
    thing = {("flow", id): owner for id, owner in owners.items()} | {("learner", id): ("learner", id) for id in graph.learners}
    thing |= {("parameter", graph.parameter_name(learner)): ("learner", learner.id) for learner in graph.parameters}
    for edge in edges(graph):
        source, target = thing.get(edge.source), thing.get(edge.target)
        if source is not None and target is not None and source != target:
            things.add_edge(source, target, kind=edge.kind)
    return things


def _reached(things: nx.MultiDiGraph[Node], thing: Node, steps: str, upstream: bool) -> set[Node]:
    """What lies at most so many steps away; all of it where no number is given."""
    near: nx.DiGraph[Node] = nx.DiGraph()
    near.add_node(thing)
    near.add_edges_from((a, b) for a, b, data in things.edges(data=True) if data["kind"] != "owns" or thing in (a, b))
    way = near.reverse(copy=False) if upstream else near
    return set(nx.single_source_shortest_path_length(way, thing, cutoff=int(steps) if steps else None))


def _named(graph: LevelGraph, owners: dict[str, Node], things: nx.MultiDiGraph[Node], name: str) -> list[Node]:
    """The things with this id, or with this name inside a block: then one in each copy."""
    if name in owners:
        return [owners[name]]
    outputs = dict(graph.outputs)
    if ("learner", name) in things:
        return [("learner", name)]
    if name in outputs:
        return [owners[outputs[name]]]
    found = [thing for thing in things if _short(graph, thing) == name]
    if not found:
        raise UsageError(f"there is no flow or learner {quoted(name)} in `{graph.name}`{_way_out(graph, things, name)}")
    return found


def _short(graph: LevelGraph, thing: Node) -> str:
    kind, id = thing
    return local(id, graph.flows[id].scope if kind == "flow" else graph.learners[id].scope)


def _way_out(graph: LevelGraph, things: nx.MultiDiGraph[Node], name: str) -> str:
    inside = next((block for block, function in graph.functions.items() if name in function.flows or name in function.learners), None)
    if inside is not None:
        return f"; the block `{inside}` has one: blocks are opened with `--after expand-templates`"
    near = did_you_mean(name, _names(graph, things))
    return f"; {near}" if near else "; `nlc graph` without `--select` shows all names"


def _names(graph: LevelGraph, things: nx.MultiDiGraph[Node]) -> Iterator[str]:
    for thing in things:
        yield thing[1]
        yield _short(graph, thing)
