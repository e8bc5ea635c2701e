"""Which flows and sweeps run period by period: what reads the tensors of a function at the start of a period, up to its updates."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx

from nlc.graph.ir import Learner, LevelGraph
from nlc.graph.linear import LinearForm
from nlc.graph.order import Node, downstream, upstream


@dataclass(frozen=True)
class Loop:
    """`body` runs once for each period of `period` tokens; `learners` are the tensors whose anchor is renewed in between."""

    id: str
    period: int
    learners: tuple[str, ...]
    body: frozenset[Node]


def loops(graph: LevelGraph, needs: nx.DiGraph[Node]) -> tuple[Loop, ...]:
    """One loop for each function of several tensors that learns on the token clock."""
    groups: dict[str, list[Learner]] = {}
    for learner in graph.learners.values():
        if learner.store.form == "tensor" and learner.group is not None and isinstance(learner.linear, LinearForm):
            groups.setdefault(learner.group, []).append(learner)
    return tuple(_loop(graph, needs, id, tuple(members)) for id, members in groups.items())


def _loop(graph: LevelGraph, needs: nx.DiGraph[Node], id: str, members: tuple[Learner, ...]) -> Loop:
    clock, ids = members[0].clock, {m.id for m in members}
    assert clock is not None
    mine = {f.id for f in graph.flows.values() if f.op in ("tensor", "recall") and f.attr("learner") in ids}
    body: set[Node] = {("sweep", m.id) for m in members}
    body |= {node for node in needs if node[0] == "flow" and node[1] in mine}
    body |= {node for node in needs if node[0] == "flow" and mine.intersection(graph.flows[node[1]].args) and _is_anchor(graph, node, ids)}
    body = downstream(needs, body) & upstream(needs, body)  # what lies between two parts of the body belongs to it
    return Loop(id, clock.period, tuple(m.id for m in members), frozenset(body))


def _is_anchor(graph: LevelGraph, node: Node, ids: set[str]) -> bool:
    """Does a flow read a tensor itself, and not what it recalls?"""
    flows = (graph.flows[arg] for arg in graph.flows[node[1]].args)
    return any(flow.op == "tensor" and flow.attr("learner") in ids for flow in flows)
