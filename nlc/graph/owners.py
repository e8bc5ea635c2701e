"""Which outer learner owns which tensor: every parameter has exactly one owner."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import replace

import networkx as nx

from nlc.diagnostics import Diagnostic
from nlc.graph import codes
from nlc.graph.alone import is_alone
from nlc.graph.edges import to_networkx
from nlc.graph.ir import ANY, Learner, LevelGraph, show_axes
from nlc.graph.loss_learners import is_own
from nlc.graph.outer import matrix_of
from nlc.language.expression import Binary, Call, Expr, Name, Number, Text, Unary, parts_of, to_text
from nlc.language.wording import did_you_mean, listed


class _BadSelector(Exception):
    def __init__(self, expr: Expr) -> None:
        self.expr = expr


def assign_owners(graph: LevelGraph, diagnostics: list[Diagnostic]) -> LevelGraph:
    """Resolve `owns:`. `rest` takes what no other selector takes; a tensor claimed twice or by nobody is a mistake."""
    owners = [learner for learner in graph.learners.values() if learner.selector is not None and not is_own(learner)]
    owner = {id: m.id for m in graph.learners.values() if is_own(m) and on_steps(m) for id in m.owns}
    if not owners and not owner:
        diagnostics += _no_matrices(graph)
        return graph
    own = set(owner)
    norms = {str(flow.attr("learner")) for flow in graph.flows.values() if flow.op in ("rmsnorm", "layernorm")}
    for learner in sorted(owners, key=_is_rest):
        assert learner.selector is not None
        for parameter in graph.parameters:
            try:
                takes = parameter.id not in owner if _is_rest(learner) else _selects(learner.selector, parameter, norms)
                takes = takes and parameter.id not in own
            except _BadSelector as bad:
                help = f"`owns` is made of {listed(SELECTORS)}, `and`, `or`, `not`"
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
            way_out = _near(graph, learner.selector) if not _is_rest(learner) else WHERE
            diagnostics.append(codes.MissingPart(f"`{learner.id}` owns no tensor: its selector takes none", learner.span, way_out))
    learners = {
        id: replace(learner, owns=tuple(p for p, o in owner.items() if o == id)) if learner in owners else learner
        for id, learner in graph.learners.items()
    }
    owned = graph.with_(learners=learners)
    if not diagnostics:
        diagnostics += [*_idle_owners(owned), *_no_matrices(owned), *_other_folds(owned)]
    return owned


def on_steps(owner: Learner) -> bool:
    """Does a learner of the loss move parameters, once a step?"""
    return owner.clock is not None and owner.clock.unit == "step"


def _other_folds(graph: LevelGraph) -> Iterator[Diagnostic]:
    """Owners that want the loss folded in another way than the first: it is one number."""
    first, *others = [m for m in graph.learners.values() if m.selector is not None and on_steps(m)]
    for owner in others:
        axis = next((axis for axis in ("row", "token") if axis in first.fold and owner.fold.get(axis) != first.fold[axis]), None)
        if axis is not None:
            text = f"`{owner.id}` folds the loss over {axis}s by `{owner.fold[axis]}`, `{first.id}` by `{first.fold[axis]}`"
            help = f"`{axis}: {first.fold[axis]}`; a factor may stand in the rate"
            yield codes.NotCompiledYet(text + "; two losses are not compiled yet", owner.span, help, (("the other learner", first.span),))


def _no_matrices(graph: LevelGraph) -> Iterator[Diagnostic]:
    """Tensors that are no matrices, owned by a learner whose rule is for matrices."""
    for owner in graph.learners.values():
        if owner.owns and ANY not in owner.axes and not is_alone(graph):
            wrong = [graph.learners[id] for id in owner.owns if matrix_of(graph.learners[id]) is None]
            if wrong:
                names = ", ".join(f"`{m.id}` {show_axes(m.axes)}" for m in wrong[:3]) + (" .." if len(wrong) > 3 else "")
                text = f"the rule of `{owner.id}` is for matrices; {names} {'are none' if len(wrong) > 1 else 'is none'}"
                help = "`owns: matrix` takes matrices only; give the others to a second learner with `owns: rest`"
                help = "take another rule, or a store of matrices" if is_own(owner) else help
                yield codes.ShapeMismatch(text, owner.span, help, (("declared here", wrong[0].span),))


def _idle_owners(graph: LevelGraph) -> list[Diagnostic]:
    """Outer learners whose loss no tensor of theirs takes part in: they would have no gradient."""
    found = nx.ancestors(to_networkx(graph), ("loss", "loss")) if graph.loss is not None else set()
    reached = {id for _, id in found}
    followed = {m.init.of for m in graph.learners.values()}
    return [
        codes.MissingPart(f"nothing that `{owner.id}` owns takes part in `loss`", owner.span, "let the loss depend on the weights")
        for owner in graph.learners.values()
        if owner.owns
        and not followed.intersection(owner.owns)
        and not reached & {*owner.owns, *(graph.parameter_name(graph.learners[id]) for id in owner.owns)}
    ]


def _is_rest(learner: Learner) -> bool:
    return learner.selector == learner.selector and isinstance(learner.selector, Name) and learner.selector.name == "rest"


SELECTORS = ("rest", "matrix", "embedding", "norm", "rank == n", "under(name)", "matches('h.*.W')")
WHERE = "a spec has parameters where it uses `linear`, norms or `init: learned`"


def _selects(selector: Expr, parameter: Learner, norms: set[str]) -> bool:
    match selector:
        case Binary(op="and", left=left, right=right):
            return _selects(left, parameter, norms) and _selects(right, parameter, norms)
        case Binary(op="or", left=left, right=right):
            return _selects(left, parameter, norms) or _selects(right, parameter, norms)
        case Unary(op="not", operand=operand):
            return not _selects(operand, parameter, norms)
        case Binary(op="==", left=Name(name="rank"), right=Number(value=rank)):
            return len(parameter.axes) == rank
        case Name(name="matrix"):
            return matrix_of(parameter) is not None and parameter.store.form != "table"
        case Name(name="embedding"):
            return parameter.store.form == "table"
        case Name(name="norm"):
            return parameter.id in norms
        case Call(function="under", args=(Name(name=name),), kwargs=()):
            return name in parameter.id.split(".")
        case Call(function="matches", args=(Text(value=pattern),), kwargs=()):
            return fnmatch.fnmatchcase(parameter.id, pattern)
    raise _BadSelector(selector)


def _near(graph: LevelGraph, selector: Expr | None) -> str | None:
    """A name of the graph that is like one asked for with `under`."""
    known = sorted({part for parameter in graph.parameters for part in parameter.id.split(".")})
    asked = [part.args[0] for part in parts_of(selector) if isinstance(part, Call) and part.function == "under"] if selector else []
    for name in asked:
        if isinstance(name, Name) and name.name not in known:
            return did_you_mean(name.name, known) or f"no tensor has `{name.name}` in its name; names have {', '.join(known)}"
    return None
