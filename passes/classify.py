"""Derive the linear form of every memory, and the gradients inside the rules of the outer levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from nlc.diagnostics import BackendError
from nlc.graph import codes
from nlc.graph.anchored import anchored_forms, written_out
from nlc.graph.calculus import Algebra, Coefficient, NotDifferentiable, derivative
from nlc.graph.ir import Flow, Learner, LevelGraph, moves_tensors
from nlc.graph.linear import LinearForm, NotLinear, linear_form
from nlc.graph.order import ordered
from nlc.graph.rewrite import substitute
from nlc.graph.slopes import slopes
from nlc.passmanager import Numerics, Pass


@dataclass(frozen=True)
class Classify(Pass):
    """Derive the linear form of every memory, and the gradients inside the rules of the outer levels.

    Before: a memory is a declaration; a learner of an optimiser has a gradient leaf.
    After: a memory also has F, b, c, r (docs/semantics.md) as flows made from the flows of the declaration, or the reason
    why it is a general recurrence; its class decides which forms are legal. The gradient leaf of a learner in an
    optimiser, and of a memory whose rule is not linear in it, is replaced by the slope of its objective.
    """

    name: ClassVar[str] = "classify"
    numerics: ClassVar[Numerics] = Numerics.TOLERANCE
    bound: ClassVar[float] = 1e-12
    required: ClassVar[bool] = True

    def run(self, graph: LevelGraph) -> LevelGraph:
        before = graph
        for learner in before.learners.values():
            if not is_memory(learner) or learner.linear is not None:
                continue
            if learner.store.form != "tensor":
                form, flows = linear_form(graph, learner)
                by_period = period_by_period(graph, learner) if isinstance(form, NotLinear) else None
                graph = by_period or graph.with_(flows=flows).with_learner(replace(learner, linear=form))
            elif graph.learners[learner.id].linear is None:  # the tensors of a function are classified together
                graph = with_forms(*anchored_forms(graph, learner.base))
        for learner in before.learners.values():
            if in_optimizer(graph, learner) and learner.rule.gradient in graph.flows:
                graph = _explicit_gradient(graph, learner)
        return graph if graph is before else ordered(graph, [])


def period_by_period(graph: LevelGraph, learner: Learner) -> LevelGraph | None:
    """A matrix or vector that has no linear form, as a function of one tensor whose gradients stand at the start of a period."""
    written = written_out(graph, learner)
    graph, forms = anchored_forms(written, learner.id) if written is not None else (graph, {})
    compiled = forms and all(isinstance(form, LinearForm) for form in forms.values())
    return with_forms(graph, forms) if compiled else None


def with_forms(graph: LevelGraph, forms: Mapping[str, LinearForm | NotLinear]) -> LevelGraph:
    for id, form in forms.items():
        graph = graph.with_learner(replace(graph.learners[id], linear=form))
    return graph


def is_memory(learner: Learner) -> bool:
    """True for a learner that writes its own store on the token clock."""
    return bool(learner.writes) and learner.host is None and learner.selector is None


def in_optimizer(graph: LevelGraph, learner: Learner) -> bool:
    """True for a learner in the rule of a learner of the loss."""
    return learner.host is not None and moves_tensors(graph.learners, learner.id)


def _slope(algebra: Algebra, loss: str, pred: str) -> Coefficient:
    """Element by element where the objective is; else by the chain rule through products of matrices and all that is between."""
    try:
        return derivative(algebra, loss, pred)
    except NotDifferentiable:
        return slopes(algebra, loss, (pred,))[pred]


def _explicit_gradient(graph: LevelGraph, learner: Learner) -> LevelGraph:
    (write,) = learner.writes
    assert write.pred is not None and learner.rule.gradient is not None
    algebra = Algebra(graph, learner)
    try:
        slope = algebra.flow(_slope(algebra, write.loss, write.pred))
    except NotDifferentiable as problem:
        raise BackendError([codes.CannotLower(f"`{learner.id}`: {problem}", problem.span)], dict(graph.sources)) from None
    state = "at" if learner.at == "decayed" else "before"
    old = Flow(f"{learner.id}:old", "recall", attrs={"learner": learner.id, "state": state}, axes=learner.axes, scope=learner.scope)
    new = graph.with_(flows={old.id: replace(old, host=learner.host, span=learner.span), **algebra.flows})
    used, names, flows = new.upstream(slope), {write.pred: old.id}, dict[str, Flow]()
    for id, flow in new.flows.items():
        flows[id] = flow
        if id in used and names.keys() & set(flow.args):  # what the slope is made of is taken at the old state
            names[id] = id if id.startswith(algebra.prefix) or id == slope else f"{id}:old"
            flows[names[id]] = replace(flow, id=names[id], args=tuple(names.get(arg, arg) for arg in flow.args))
    leaf = next(flow.id for flow in graph.flows.values() if flow.op == "gradient" and flow.attr("learner") == learner.id)
    return substitute(new.with_(flows=flows), {leaf: names.get(slope, slope)})
