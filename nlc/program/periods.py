"""Which flows and sweeps run period by period: what reads the tensors of a function at the start of a period, up to its updates."""

from __future__ import annotations

from collections.abc import Mapping
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
    cut: int = 0
    """Before every so many tokens no gradient passes by the states; 0: it always does."""
    recompute: int = 0
    """Tokens that the backward pass runs anew, at least; 0: all is kept."""


def loops(graph: LevelGraph, needs: nx.DiGraph[Node], sweeps: Mapping[str, tuple[Learner, ...]]) -> tuple[Loop, ...]:
    """One loop for each function of several tensors that learns on the token clock, and for each other sweep that runs in
    segments: between which the outer gradient is cut, or which the backward pass runs anew. `sweeps`: the learners of each."""
    groups: dict[str, list[Learner]] = {}
    for learner in graph.learners.values():
        if learner.store.form == "tensor" and learner.group is not None and isinstance(learner.linear, LinearForm):
            groups.setdefault(learner.group, []).append(learner)
    found = [_loop(graph, needs, id, tuple(members)) for id, members in groups.items()]
    for id, learners in sweeps.items():
        first, cut, anew = learners[0], learners[0].backprop.tokens, recomputed(learners[0])
        body = frozenset({("sweep", id), *needs.successors(("sweep", id))})
        holder = next((loop for loop in found if loop.body & body), None)  # it cuts what has the same cuts, and runs anew as a whole
        if first.group is None and ((cut and (holder is None or holder.cut != cut)) or (anew and holder is None)):
            found.append(Loop(first.id, cut or anew, (), body, cut, anew))
    return tuple(found)


def _loop(graph: LevelGraph, needs: nx.DiGraph[Node], id: str, members: tuple[Learner, ...]) -> Loop:
    clock, ids = members[0].clock, {m.id for m in members}
    assert clock is not None
    mine = {f.id for f in graph.flows.values() if f.op in ("tensor", "recall") and f.attr("learner") in ids}
    body: set[Node] = {("sweep", m.id) for m in members}
    body |= {node for node in needs if node[0] == "flow" and node[1] in mine}
    still = _still(graph, ids)
    body |= {node for node in needs if node[0] == "flow" and still.intersection(graph.flows[node[1]].args)}
    body = downstream(needs, body) & upstream(needs, body)  # what lies between two parts of the body belongs to it
    return Loop(id, clock.period, tuple(m.id for m in members), frozenset(body), members[0].backprop.tokens, recomputed(members[0]))


def recomputed(learner: Learner) -> int:
    """Tokens that the backward pass runs anew."""
    return learner.execution.recompute if learner.execution is not None else 0


def _still(graph: LevelGraph, ids: set[str]) -> set[str]:
    """The flows that are the same at all tokens of a period, since they are made of tensors at its start alone."""
    found: set[str] = set()
    for flow in graph.flows.values():
        made_of_them = bool(found.intersection(flow.args)) and all(arg in found or graph.flows[arg].op == "number" for arg in flow.args)
        if made_of_them or (flow.op == "tensor" and not flow.args and flow.attr("learner") in ids):
            found.add(flow.id)
    return found
