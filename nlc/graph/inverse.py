"""`solve(x -> S(x) + a * x, q)`: the x that a memory and a ridge take to q. A recall of the inverse of a memory.

The function is a sum of one call of a memory of this spec and of multiples of its argument. In the graph it is a `recall` with the
attribute `inverse` and two operands: q, and the ridge a. Both axes of the memory have one name, so that S(x) and a * x have the same axes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nlc.diagnostics import Span
from nlc.graph import codes
from nlc.graph.builder import Builder, Context
from nlc.graph.ir import Flow, LevelGraph, show_axes
from nlc.graph.solved import is_solved
from nlc.language.expression import Binary, Call, Expr, Lambda, Name, Number, Unary, children, to_text

FORM = "`solve` takes `x -> S(x) + a * x` with a memory S, and what it is equal to"


@dataclass(frozen=True)
class _Terms:
    """calls of memories + ridge * x."""

    calls: tuple[Call, ...] = ()
    ridge: Expr | None = None


def solve(b: Builder, expr: Call, context: Context, name: str | None) -> str:
    b.arguments(expr, "a function", "what it is equal to")
    function, right = expr.args
    if not isinstance(function, Lambda):
        b.fail(codes.NotAValue, "the first argument of `solve` is a function", function.span, FORM)
    if b.host is not None or context.in_store or context.self_id is not None:
        b.fail(codes.NotCompiledYet, "`solve` inside a rule, a store or `learn` is not compiled yet", expr.span, "write it under `flows`")
    terms = _terms(b, function.body, function.parameter)
    if not terms.calls:
        b.fail(codes.MissingPart, f"`{to_text(function)}` calls no memory", function.span, FORM)
    if len(terms.calls) > 1:
        b.fail(codes.NotCompiledYet, "a system of several memories is not compiled yet", terms.calls[1].span, FORM)
    (call,) = terms.calls
    id, state = _memory(b, call)
    learner = b.learners[id]
    axes = (*learner.per, *learner.store.in_axes)
    query = b.expr(right, context)
    b.fits(query, axes, right.span, "the right side of `solve`", learner.store.in_axes)
    if terms.ridge is None:
        if learner.init.distribution == "zeros":
            text = f"`{call.function}` begins as zeros, so this has no solution before it has seen as many keys as they have channels"
            b.fail(
                codes.MissingPart,
                text,
                function.span,
                f"add a ridge: `{function.parameter} -> {to_text(function.body)} + a * {function.parameter}`",
            )
        ridge = b.constant(0, function.span)
    else:
        ridge = b.without_ones(b.expr(terms.ridge, context), axes)
        b.fits(ridge, axes, terms.ridge.span, "the ridge of `solve`")
    return b.node("recall", [query, ridge], expr.span, context, name, axes, "solve", learner=id, state=state, inverse=True)


def _memory(b: Builder, call: Call) -> tuple[str, str]:
    """The learner that is called, and the state that calls of it see."""
    id = b.id_of(call.function)
    declared = next(learner for learner in b.spec.learners if learner.name == call.function)
    if is_solved(declared) or id in b.written_out or not declared.learn or declared.owns is not None:
        b.fail(
            codes.NotCompiledYet,
            f"`solve` with `{call.function}` is not compiled yet",
            call.span,
            "it takes a matrix that learns: `{matrix: [K, K]}`",
        )
    store = b.learners[id].store
    if store.form != "map" or store.in_axes != store.out_axes:
        sides = f"it maps {show_axes(store.in_axes)} to {show_axes(store.out_axes)}" if store.form == "map" else "its store has no query"
        text = f"`solve` needs a memory whose values have the axes of its keys; {sides}"
        b.fail(codes.ShapeMismatch, text, call.span, f"`{call.function}: {{store: {{matrix: [K, K]}}, ..}}`")
    return id, declared.read or "after"


def _terms(b: Builder, expr: Expr, x: str) -> _Terms:
    """A function of x, which must be linear in it, as a sum."""
    match expr:
        case Name(name=name) if name == x:
            return _Terms(ridge=Number(1, expr.span))
        case Call(function=function, args=(Name(name=name),), kwargs=()) if name == x and function in b.local_learners:
            return _Terms((expr,))
        case Unary(op="-", operand=operand):
            return _scaled(b, _terms(b, operand, x), "*", Number(-1, expr.span), expr.span)
        case Binary(op="+" | "-" as op, left=left, right=right):
            first, second = _terms(b, left, x), _terms(b, right, x)
            if op == "-":
                second = _scaled(b, second, "*", Number(-1, expr.span), expr.span)
            both = first.ridge and second.ridge and Binary("+", first.ridge, second.ridge, expr.span)
            return _Terms(first.calls + second.calls, both or first.ridge or second.ridge)
        case Binary(op="*" | "/" as op, left=left, right=right) if not _mentions(right, x):
            return _scaled(b, _terms(b, left, x), op, right, expr.span)
        case Binary(op="*", left=left, right=right) if not _mentions(left, x):
            return _scaled(b, _terms(b, right, x), "*", left, expr.span)
    if not _mentions(expr, x):
        b.fail(codes.BadChoice, f"`{to_text(expr)}` does not depend on `{x}`", expr.span, "subtract it from the right side")
    return b.fail(codes.NotCompiledYet, f"`{to_text(expr)}` in a system is not compiled yet", expr.span, FORM)


def _scaled(b: Builder, terms: _Terms, op: str, by: Expr, span: Span) -> _Terms:
    if terms.calls:
        b.fail(
            codes.NotCompiledYet,
            "a multiple of a memory in a system is not compiled yet",
            span,
            "divide the ridge and the right side instead",
        )
    assert terms.ridge is not None
    return _Terms(
        ridge=by if op == "*" and isinstance(terms.ridge, Number) and terms.ridge.value == 1 else Binary(op, terms.ridge, by, span)
    )


def _mentions(expr: Expr, name: str) -> bool:
    return (isinstance(expr, Name) and expr.name == name) or any(_mentions(child, name) for child in children(expr))


def inverses(graph: LevelGraph, learner: str) -> tuple[Flow, ...]:
    """The recalls of the inverse of a memory."""
    return tuple(flow for flow in graph.recalls.get(learner, ()) if flow.attr("inverse"))


def ridges_of(recalls: Iterable[Flow]) -> dict[int, str]:
    """The ridges, by the place of their recall."""
    return {i: flow.args[1] for i, flow in enumerate(recalls) if flow.attr("inverse")}
