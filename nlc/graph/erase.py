"""`gram(x)` in the keep of a rule: the part of a matrix that its own input reads (Nested Learning, eq. 54-57).

    W <- (keep I + c x x^T) kept W + step     with W [K, V] and kept W what the keep of the learner leaves

In the graph the keep is the number, and c times the flow `erase`, x (x^T kept W), is part of the step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nlc.diagnostics import Diagnostic
from nlc.graph import codes
from nlc.graph.alone import is_alone
from nlc.graph.builder import Builder, Context
from nlc.graph.ir import Flow, Learner, LevelGraph, pred_id
from nlc.language.expression import Binary, Call, Expr, Number, Unary, parts_of
from nlc.language.spec import Input


@dataclass(frozen=True)
class Term:
    """sign * factor * gram; a factor of None is 1."""

    sign: int
    factor: Expr | None
    gram: Call


@dataclass(frozen=True)
class Operator:
    """number * I + the sum of terms; a number of None is 0."""

    number: Expr | None
    terms: tuple[Term, ...] = ()


def input_rows(b: Builder, learner: Learner, item: Input) -> str:
    """What a rule's `input` is: the key of a matrix memory; for a matrix of a function what its product is given."""
    if learner.host is not None:
        b.fail(codes.NotCompiledYet, "a rule of a learner inside a rule that reads `input` is not compiled yet", item.span)
    if learner.selector is not None:
        return _rows_of_weights(b, learner, item)
    if item.axes is not None:
        b.fail(codes.NotCompiledYet, "axes of `input` are not compiled yet", item.span, f"write `{item.name}: input`")
    if len(learner.writes) > 1:
        b.fail(codes.NotCompiledYet, "`input` of several writes or of a context of several tokens is not compiled yet", item.span)
    (write,) = learner.writes
    if learner.store.form == "map" and write.key is not None:
        return write.key
    leaf = pred_id(learner.id, 0)
    products = [flow for flow in b.flows.values() if flow.op == "contract" and leaf in flow.args]
    first = 0 if learner.store.transposed else 1
    wrong = [flow for flow in products if flow.args.count(leaf) != 1 or flow.args[first] != leaf]
    if not learner.store.in_axes or len(products) != 1 or wrong:
        name = learner.store.tensors[0].name
        what = f"`{name}` of `{learner.base}`" if learner.store.form == "tensor" else f"`{learner.id}`"
        why = f"{what} is in no product `{name} @ z`" if not products else f"{what} is in several products"
        help = "only a matrix with one product has an input; the tensors of a learner share its rule"
        b.fail(codes.WrongType, f"the rule reads `input`, but {why}", item.span, help, [("the learner", learner.span)])
    (product,) = products
    return next(arg for arg in product.args if arg != leaf)


def _rows_of_weights(b: Builder, owner: Learner, item: Input) -> str:
    """A leaf for the inputs of the tensors of an outer level; which flows they are is known with its tensors (`with_rows`)."""
    if is_alone(b):
        help = "in a model, a learner with `owns: matrix` may have this rule"
        b.fail(codes.NotCompiledYet, "the rule reads `input`, which weights by themselves do not have", item.span, help)
    if owner.accumulates:
        b.fail(codes.NotCompiledYet, "`input` with gradients added over steps is not compiled yet", item.span, "`fold: {step: last}`")
    return b.add(Flow(f"{owner.id}.rows", "rows", attrs={"learner": owner.id}, axes=owner.axes[-1:], host=owner.id, span=item.span))


def with_rows(graph: LevelGraph, diagnostics: list[Diagnostic]) -> LevelGraph:
    """The graph that says which flows are the inputs of the weights whose rule reads them."""
    rows: list[tuple[str, str]] = []
    for owner in (graph.learners[str(f.attr("learner"))] for f in graph.flows.values() if f.op == "rows"):
        for id in owner.owns:
            flow = _multiplied(graph, graph.learners[id])
            if flow is None:
                text = f"the rule of `{owner.id}` reads `input`, but `{id}` is not in one product with one vector a token"
                diagnostics.append(codes.WrongType(text, owner.span, "give it another rule", (("declared here", graph.learners[id].span),)))
            else:
                rows.append((id, flow))
    return graph.with_(rows=tuple(rows)) if rows else graph


def _multiplied(graph: LevelGraph, weight: Learner) -> str | None:
    """The flow that a matrix is multiplied with; None where that is not one."""
    asked = [flow for flow in graph.flows.values() if flow.attr("learner") == weight.id]
    if len(asked) != 1 or weight.per or weight.store.form not in ("map", "tensor"):
        return None
    (flow,) = asked
    if flow.op == "recall" and len(flow.args) == 1:
        found = flow.args[0]
    else:
        products = [graph.flows[id] for id in graph.readers.get(flow.id, ())]
        if len(products) != 1 or products[0].op != "contract" or products[0].args[0 if weight.store.transposed else 1] != flow.id:
            return None
        found = next(arg for arg in products[0].args if arg != flow.id)
    return found if sorted(map(str, graph.flows[found].axes)) == sorted(map(str, weight.store.in_axes)) else None


def number_and_terms(b: Builder, keep: Expr) -> tuple[Expr, tuple[Term, ...]]:
    """The keep of a rule: a number, and its terms with `gram`."""
    operator = operator_of(b, keep)
    return operator.number or Number(0, keep.span), operator.terms


def with_erases(b: Builder, learner: Learner, terms: tuple[Term, ...], step: str) -> str:
    """The step of a rule, and what these terms of its keep take away."""
    if terms and learner.folds in ("sum", "mean"):
        text = f"`gram` with `fold: {learner.folds}` is not compiled yet"
        b.fail(codes.NotCompiledYet, text, terms[0].gram.span, "`fold: each` erases token by token, `fold: last` once a period")
    here = Context("erase", host=learner.id)
    for term in terms:
        step = b.node("add" if term.sign > 0 else "sub", [step, _erased(b, learner, term, here)], term.gram.span, here)
    return step


def _erased(b: Builder, learner: Learner, term: Term, here: Context) -> str:
    """factor * x (x^T kept W)."""
    call = term.gram
    b.arguments(call, "the input of the rule")
    x, copies = b.expr(call.args[0], here), learner.copies
    if learner.selector is None:
        _fits_input(b, learner, x, call)
    elif b.flows[x].op != "rows":
        b.fail(codes.NotCompiledYet, "`gram` of something else than the input is not compiled yet", call.span)
    part = b.node("erase", [x], call.span, here, axes=(*learner.of_a_token, *learner.axes), learner=learner.id)
    if term.factor is None:
        return part
    factor = b.without_ones(b.expr(term.factor, here), learner.per)
    b.fits(factor, copies, term.factor.span, "the factor of `gram`")
    return b.node("mul", [factor, part], call.span, here)


def _fits_input(b: Builder, learner: Learner, x: str, call: Call) -> None:
    inner = learner.store.in_axes
    if not inner:
        help = "x x^T acts on the keys of a matrix: give the learner a store such as `{matrix: [K, V]}`"
        b.fail(codes.WrongType, f"`gram` acts on the input side of a matrix; `{learner.id}` has none", call.span, help)
    b.fits(x, (*learner.copies, *inner), call.span, "the operand of `gram`", inner)


# -- expressions ----------------------------------------------------------------------------------------------------------


def operator_of(b: Builder, expr: Expr) -> Operator:
    """An expression as number * I + terms with `gram`."""
    if not any(map(_is_gram, parts_of(expr))):
        return Operator(expr)
    match expr:
        case Call(function="gram"):
            return Operator(None, (Term(1, None, expr),))
        case Unary(op="-", operand=operand):
            return _minus(operator_of(b, operand))
        case Binary(op="+" | "-" as op, left=left, right=right):
            first, second = operator_of(b, left), operator_of(b, right)
            second = _minus(second) if op == "-" else second
            number = first.number or second.number
            if first.number is not None and second.number is not None:
                number = Binary("+", first.number, second.number, expr.span)
            return Operator(number, first.terms + second.terms)
        case Binary(op="*" | "/" as op, left=left, right=right):
            first, second = operator_of(b, left), operator_of(b, right)
            if second.number is not None and not second.terms:
                return _times(first, op, second.number)
            if first.number is not None and not first.terms and op == "*":
                return _times(second, op, first.number)
    return b.fail(codes.WrongArguments, "`gram(x)` enters `keep` as a term", expr.span, "such as `keep - rate * gram(x)`")


def _is_gram(expr: Expr) -> bool:
    return isinstance(expr, Call) and expr.function == "gram"


def _minus(x: Operator) -> Operator:
    number = None if x.number is None else Unary("-", x.number, x.number.span)
    return Operator(number, tuple(replace(term, sign=-term.sign) for term in x.terms))


def _times(x: Operator, op: str, by: Expr) -> Operator:
    """x times, or divided by, a number."""
    number = None if x.number is None else Binary(op, x.number, by, by.span)
    return Operator(number, tuple(replace(term, factor=_scaled(term.factor, op, by)) for term in x.terms))


def _scaled(factor: Expr | None, op: str, by: Expr) -> Expr:
    if factor is None and op == "*":
        return by
    return Binary(op, factor or Number(1, by.span), by, by.span)
