"""Compute what is known when compiling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from nlc.graph.constants import NUMERIC, number_of
from nlc.graph.ir import Flow, LevelGraph
from nlc.graph.rewrite import substitute
from nlc.passmanager import Numerics, Pass


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute what is known when compiling.

    Before: operators on numbers (`K ^ -0.5`), neutral operands (`x * 1`, `x + 0`), a keep of 1.
    After: one number; the operand itself; no keep. Numbers are folded in float64, as the reference computes them.
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
        return _drop_unit_keeps(folded)


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
