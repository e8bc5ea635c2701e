"""Compute what is known when compiling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from nlc.graph.constants import NUMERIC, number_of
from nlc.graph.ir import Flow, LevelGraph
from nlc.graph.outer import loss_levels
from nlc.graph.rewrite import keep_only, substitute
from nlc.passmanager import Numerics, Pass


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute what is known when compiling.

    Before: operators on numbers (`K ^ -0.5`), neutral operands (`x * 1`, `x + 0`), a keep of 1, learners of the loss with a rate of 0.
    After: one number; the operand itself; no keep; tensors that nothing moves but the outer level. Numbers are folded in float64, as
    the reference computes them.
    """

    name: ClassVar[str] = "fold-constants"
    numerics: ClassVar[Numerics] = Numerics.TOLERANCE
    bound: ClassVar[float] = 1e-12

    def run(self, graph: LevelGraph) -> LevelGraph:
        new: dict[str, str] = {}
        flows: dict[str, Flow] = {}
        for flow in graph.flows.values():
            flow = replace(flow, args=tuple(new.get(arg, arg) for arg in flow.args)) if any(arg in new for arg in flow.args) else flow
            value = _number(flow, flows)
            if value is not None:
                id = f"#{value!r}"
                flows.setdefault(id, Flow(id, "number", attrs={"value": value}, span=flow.span))
                new[flow.id] = id
            elif (same := _neutral(flow, flows)) is not None:
                new[flow.id] = same
            flows[flow.id] = flow
        folded = substitute(graph.with_(flows=flows), new) if new else graph
        return _without_idle_levels(_drop_unit_keeps(folded))


def _number(flow: Flow, flows: dict[str, Flow]) -> float | int | None:
    if flow.op not in NUMERIC or any(flows[arg].op != "number" for arg in flow.args):
        return None
    return number_of(flow.op, [flows[arg].attr("value") for arg in flow.args])


def _neutral(flow: Flow, flows: dict[str, Flow]) -> str | None:
    """The operand that the operator returns unchanged."""
    if len(flow.args) != 2:
        return None
    left, right = (flows[arg] for arg in flow.args)
    x, y = (f.attr("value") if f.op == "number" else None for f in (left, right))
    if left.axes == flow.axes and ((flow.op in ("add", "sub") and y == 0) or (flow.op in ("mul", "div", "pow") and y == 1)):
        return left.id
    if right.axes == flow.axes and ((flow.op == "add" and x == 0) or (flow.op == "mul" and x == 1)):
        return right.id
    return None


def _drop_unit_keeps(graph: LevelGraph) -> LevelGraph:
    for learner in graph.learners.values():
        keep, rule = learner.keep, learner.rule
        if keep is not None and graph.flows[keep].attr("value") == 1:
            learner = replace(learner, keep=None)
        if rule.keep is not None and graph.flows[rule.keep].attr("value") == 1:
            learner = replace(learner, rule=replace(rule, keep=None))
        if learner is not graph.learners[learner.id]:
            graph = graph.with_learner(learner)
    return graph


def _without_idle_levels(graph: LevelGraph) -> LevelGraph:
    """Learners of the loss that never move their tensors, which begin as parameters: these are parameters then."""
    for level in loss_levels(graph):
        owner, followed = level.owner, {m.init.of for m in graph.learners.values()}
        learned = all(graph.learners[id].init.learned and id not in followed for id in owner.owns)
        if owner.keep is None and owner.rule.keep is None and learned and _is_zero(graph, str(owner.rule.step)):
            gone = {owner.id, *(m.id for m in level.inner)}
            flows = {id for id, flow in graph.flows.items() if flow.host not in gone}
            graph = keep_only(graph, flows, set(graph.learners) - gone)
            still = {
                id: replace(graph.learners[id], owner=None, clock=None, reset=None, sharing="shared", defaults=()) for id in owner.owns
            }
            graph = graph.with_(learners={**graph.learners, **still})
    return graph


def _is_zero(graph: LevelGraph, id: str) -> bool:
    """Is a flow made as something times 0?"""
    flow = graph.flows[id]
    return flow.attr("value") == 0 or (flow.op in ("mul", "neg") and any(_is_zero(graph, arg) for arg in flow.args))
