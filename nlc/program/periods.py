"""Which flows and sweeps run period by period: what reads the tensors of a function at the start of a period, up to its updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import networkx as nx

from nlc.graph.ir import Learner, LevelGraph
from nlc.graph.linear import LinearForm
from nlc.graph.order import Node, downstream


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
    """Loops for functions of several tensors that learn on the token clock, and one for each other sweep that runs in
    segments: between which the outer gradient is cut, or which the backward pass runs anew. `sweeps`: the learners of each."""
    found = _of_functions(graph, needs)
    for id, learners in sweeps.items():
        first, cut, anew = learners[0], learners[0].backprop.tokens, recomputed(learners[0])
        body = frozenset({("sweep", id), *needs.successors(("sweep", id))})
        holder = next((loop for loop in found if loop.body & body), None)  # it cuts what has the same cuts, and runs anew as a whole
        if (cut and (holder is None or holder.cut != cut)) or (anew and holder is None):
            found.append(Loop(first.id, cut or anew, (), body, cut, anew))
    return tuple(found)


def _of_functions(graph: LevelGraph, needs: nx.DiGraph[Node]) -> list[Loop]:
    """What reads the tensors of a function, its updates, and all that lies between; functions that need each other share a loop."""
    groups: dict[str, list[Learner]] = {}
    for learner in graph.learners.values():
        if learner.store.form == "tensor" and learner.group is not None and isinstance(learner.linear, LinearForm):
            groups.setdefault(learner.group, []).append(learner)
    tied = needs.copy()
    for id, members in groups.items():
        for node in _readers(graph, needs, {m.id for m in members}):
            tied.add_edges_from([(node, ("loop", id)), (("loop", id), node)])
    found = []
    for body in nx.strongly_connected_components(tied) if groups else ():
        ids = [id for id in groups if ("loop", id) in body]
        members = [m for id in ids for m in groups[id]]
        if members:
            clock, anew = members[0].clock, max(map(recomputed, members))
            assert clock is not None
            inside = body - {("loop", id) for id in ids}
            inside |= {after for node in inside if node[0] == "sweep" for after in needs.successors(node)}  # all that it recalls
            found.append(Loop(ids[0], clock.period, tuple(m.id for m in members), frozenset(inside), members[0].backprop.tokens, anew))
    return sorted(found, key=lambda loop: list(groups).index(loop.id))


def _readers(graph: LevelGraph, needs: nx.DiGraph[Node], ids: set[str]) -> set[Node]:
    """What changes with these tensors from period to period: their updates, and the flows that read them at the start of one.

    Not what sees the next token: that is known once all periods have run.
    """
    mine = {f.id for f in graph.flows.values() if f.op in ("tensor", "recall") and f.attr("learner") in ids}
    still = _still(graph, ids)
    found = {node for node in needs if node[0] == "flow" and (node[1] in mine or still.intersection(graph.flows[node[1]].args))}
    ahead = downstream(needs, [node for node in needs if node[0] == "flow" and graph.flows[node[1]].op == "next"])
    return (found - ahead) | {("sweep", id) for id in ids}


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
