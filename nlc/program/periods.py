"""Which flows and sweeps run period by period: what reads the tensors of a function at the start of a period, up to its updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import networkx as nx

from nlc.graph.ir import Learner, LevelGraph
from nlc.graph.linear import LinearForm
from nlc.graph.order import Node


@dataclass(frozen=True)
class Loop:
    """`body` runs once for each period of `period` tokens; `learners` are the tensors whose anchor is renewed in between."""

    id: str
    period: int
    learners: tuple[str, ...]
    body: frozenset[Node]
    cut: int = 0
    """Before every so many tokens no gradient passes by the states; 0: it always does."""


def loops(graph: LevelGraph, needs: nx.DiGraph[Node], sweeps: Mapping[str, tuple[Learner, ...]]) -> tuple[Loop, ...]:
    """One loop for each function of several tensors that learns on the token clock, and for each other sweep between whose tokens
    the outer gradient is cut. `sweeps`: the learners of each."""
    groups: dict[str, list[Learner]] = {}
    for learner in graph.learners.values():
        if learner.store.form == "tensor" and learner.group is not None and isinstance(learner.linear, LinearForm):
            groups.setdefault(learner.group, []).append(learner)
    found = [_loop(graph, needs, id, tuple(members)) for id, members in groups.items()]
    for id, learners in sweeps.items():
        if learners[0].group is None and learners[0].backprop.tokens:
            body: set[Node] = {("sweep", id), *(node for node in needs.successors(("sweep", id)))}
            n = learners[0].backprop.tokens
            found.append(Loop(learners[0].id, n, (), frozenset(body), n))
    return tuple(found)


def _loop(graph: LevelGraph, needs: nx.DiGraph[Node], id: str, members: tuple[Learner, ...]) -> Loop:
    clock, ids = members[0].clock, {m.id for m in members}
    assert clock is not None
    mine = {f.id for f in graph.flows.values() if f.op in ("tensor", "recall") and f.attr("learner") in ids}
    body: set[Node] = {("sweep", m.id) for m in members}
    body |= {node for node in needs if node[0] == "flow" and node[1] in mine}
    body |= {node for node in needs if node[0] == "flow" and mine.intersection(graph.flows[node[1]].args) and _is_anchor(graph, node, ids)}
    grown = 0
    while len(body) > grown:  # what lies between two parts of the body belongs to it
        grown = len(body)
        after = set().union(*(nx.descendants(needs, node) for node in body))
        before = set().union(*(nx.ancestors(needs, node) for node in body))
        body |= after & before
    return Loop(id, clock.period, tuple(m.id for m in members), frozenset(body), members[0].backprop.tokens)


def _is_anchor(graph: LevelGraph, node: Node, ids: set[str]) -> bool:
    """Does a flow read a tensor itself, and not what it recalls?"""
    flows = (graph.flows[arg] for arg in graph.flows[node[1]].args)
    return any(flow.op == "tensor" and flow.attr("learner") in ids for flow in flows)
