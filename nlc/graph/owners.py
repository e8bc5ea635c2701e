"""Which outer learner owns which tensor: every parameter has exactly one owner."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx

from nlc.diagnostics import Diagnostic
from nlc.graph import codes
from nlc.graph.edges import to_networkx
from nlc.graph.ir import Learner, LevelGraph
from nlc.language.expression import Binary, Call, Expr, Name, Number, Unary, to_text


class _BadSelector(Exception):
    def __init__(self, expr: Expr) -> None:
        self.expr = expr


def assign_owners(graph: LevelGraph, diagnostics: list[Diagnostic]) -> LevelGraph:
    """Resolve `owns:`. `rest` takes what no other selector takes; a tensor claimed twice or by nobody is a mistake."""
    owners = [learner for learner in graph.learners.values() if learner.selector is not None]
    if not owners:
        return graph
    owner: dict[str, str] = {}
    for learner in sorted(owners, key=_is_rest):
        assert learner.selector is not None
        for parameter in graph.parameters:
            try:
                takes = parameter.id not in owner if _is_rest(learner) else _selects(learner.selector, parameter)
            except _BadSelector as bad:
                help = "`owns` is made of `rest`, `rank == n`, `under(name)`, `and`, `or`, `not`"
                diagnostics.append(codes.NotAValue(f"`{to_text(bad.expr)}` does not select tensors", bad.expr.span, help))
                return graph
            if takes and parameter.id in owner:
                both = f"`{owner[parameter.id]}` and `{learner.id}` both own `{parameter.id}`"
                diagnostics.append(codes.BadChoice(both, learner.span, "make one selector exclude it"))
                return graph
            if takes:
                owner[parameter.id] = learner.id
    for parameter in graph.parameters:
        if parameter.id not in owner:
            diagnostics.append(codes.MissingPart(f"nobody owns `{parameter.id}`", parameter.span, "add a learner with `owns: rest`"))
    for learner in owners:
        if learner.id not in owner.values() and not diagnostics:
            way_out = "a spec has parameters where it uses `linear`, norms or `init: learned`" if _is_rest(learner) else None
            diagnostics.append(codes.MissingPart(f"`{learner.id}` owns no tensor: its selector takes none", learner.span, way_out))
    learners = {
        id: replace(learner, owns=tuple(p for p, o in owner.items() if o == id)) if learner.selector is not None else learner
        for id, learner in graph.learners.items()
    }
    owned = graph.with_(learners=learners)
    if not diagnostics:
        diagnostics += _idle_owners(owned)
    return owned


def _idle_owners(graph: LevelGraph) -> list[Diagnostic]:
    """Outer learners whose loss no tensor of theirs takes part in: they would have no gradient."""
    found = nx.ancestors(to_networkx(graph), ("loss", "loss")) if graph.loss is not None else set()
    reached = {id for _, id in found}
    return [
        codes.MissingPart(f"nothing that `{owner.id}` owns takes part in `loss`", owner.span, "let the loss depend on the weights")
        for owner in graph.learners.values()
        if owner.owns and not reached & {*owner.owns, *(graph.parameter_name(graph.learners[id]) for id in owner.owns)}
    ]


def _is_rest(learner: Learner) -> bool:
    return learner.selector == learner.selector and isinstance(learner.selector, Name) and learner.selector.name == "rest"


def _selects(selector: Expr, parameter: Learner) -> bool:
    match selector:
        case Binary(op="and", left=left, right=right):
            return _selects(left, parameter) and _selects(right, parameter)
        case Binary(op="or", left=left, right=right):
            return _selects(left, parameter) or _selects(right, parameter)
        case Unary(op="not", operand=operand):
            return not _selects(operand, parameter)
        case Binary(op="==", left=Name(name="rank"), right=Number(value=rank)):
            return len(parameter.axes) == rank
        case Call(function="under", args=(Name(name=name),), kwargs=()):
            return name in parameter.id.split(".")
    raise _BadSelector(selector)
