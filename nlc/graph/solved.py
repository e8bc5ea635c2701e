"""Learners that are solved exactly when they are asked: nothing is stored but the context, each query gets the minimum over it.

`S(q) = argmin over w of sum over samples i of weight(q, k_i) * 0.5 |w - v_i|^2`, the weighted mean of the values: attention
(Nested Learning, eq. 62). The weight is a function of the leaves `query` and `key`; flows of it have the learner as host.
"""

from __future__ import annotations

from dataclasses import replace

from nlc.diagnostics import Span
from nlc.graph import codes
from nlc.graph.builder import Builder, Context, Rejected
from nlc.graph.constants import NUMERIC, number_of
from nlc.graph.ir import Axes, Flow, Learner, LevelGraph, Solve
from nlc.language import spec as language
from nlc.language.expression import Call

MEANINGLESS = ("times", "keep", "rate", "rule", "at", "fold")
"""Keys of a write that say how a step is made; an exact solve makes none."""


def is_solved(learner: language.Learner) -> bool:
    return any(write.solve == "exact" for write in learner.learn)


def solved_context(b: Builder, learner: language.Learner) -> Solve:
    """Give a declared learner its context: the key and value of a sample and its weight. Once, when first asked."""
    id = f"{b.prefix}{learner.name}"
    known = b.learners[id].solve
    if known is not None:
        return known
    if b.solving.get(id) is False:  # its mistake is reported already
        raise Rejected
    if id in b.solving:
        place, help = learner.learn[0].span, "take the key and value from elsewhere"
        b.fail(codes.TickCycle, f"the context of `{learner.name}` needs its own answer", place, help)
    b.solving[id] = True
    try:
        solve = _solve(b, b.learners[id], learner)
    except Rejected:
        b.solving[id] = False
        raise
    declared = b.learners[id]
    b.learners[id] = replace(declared, solve=solve, defaults=tuple(d for d in declared.defaults if d[0] != "init"))
    return solve


def _solve(b: Builder, declared: Learner, learner: language.Learner) -> Solve:
    write = learner.learn[0]
    _check(b, declared, learner, write)
    assert write.key is not None and write.value is not None and write.over is not None
    here = Context(learner.name, kept=declared.per)
    key = b.expr(write.key, replace(here, owner=f"{learner.name}.key"))
    if any(axis not in b.flows[key].axes for axis in declared.per):
        b.fits(key, declared.per, write.key.span, "`key`", declared.per)
    value = b.expr(write.value, replace(here, owner=f"{learner.name}.value"))
    b.fits(value, declared.per + declared.store.out_axes, write.value.span, "`value`", declared.store.out_axes)
    leaves = {
        name: b.add(
            Flow(f"{declared.id}.{name}", op, attrs={"learner": declared.id}, axes=b.flows[key].axes, host=declared.id, span=write.span)
        )
        for name, op in (("query", "asked"), ("key", "sample"))
    }
    weight = b.constant(1, write.span)
    if write.weight is not None:
        weight = b.expr(write.weight, replace(here, owner=f"{learner.name}.weight", local=leaves, host=declared.id))
        b.fits(weight, declared.per, write.weight.span, "`weight`")
        _only_pairs(b, weight, declared.id, write.weight.span)
    over = 0 if write.over.clock == "all" else int(b.number(write.over.count))
    return Solve(key, value, weight, leaves["query"], leaves["key"], over)


def _check(b: Builder, declared: Learner, learner: language.Learner, write: language.Write) -> None:
    """What an exact solve needs, what has no meaning for it, and what is not compiled yet."""
    if len(learner.learn) > 1:
        b.fail(codes.NotCompiledYet, "several writes in one tick are not compiled yet", learner.learn[1].span)
    if declared.store.form != "value":
        b.fail(codes.NotCompiledYet, "an exact solve of a matrix is not compiled yet", write.spans["solve"], "`store: {vector: [V]}` is")
    for part in ("key", "value", "over"):
        if getattr(write, part) is None:
            example = {"key": "`key: k`", "value": "`value: v`", "over": "`over: all`, or `over: 64 tokens`"}[part]
            b.fail(codes.MissingPart, f"`learn` of `{learner.name}` is solved exactly, so it needs `{part}`", write.span, f"add {example}")
    for key in MEANINGLESS:
        if key in write.spans:
            b.fail(codes.BadChoice, f"`{key}` has no meaning for `solve: exact`: no step is made", write.spans[key], "leave it out")
    if learner.init is not None:
        b.fail(codes.BadChoice, "`init` has no meaning for `solve: exact`: nothing is stored", learner.init.span, "leave it out")
    if declared.read != "after":
        b.fail(
            codes.NotCompiledYet, "a query that does not see its own token is not compiled yet", learner.spans["read"], "leave `read` out"
        )
    if write.minimize is not None:
        what = "an exact solve of another objective than the default is not compiled yet"
        b.fail(codes.NotCompiledYet, what, write.spans["minimize"], "leave `minimize` out: half the squared distance to the value")
    if declared.clock is None or (declared.clock.unit, declared.clock.period) != ("token", 1):
        b.fail(codes.NotCompiledYet, "an exact solve on another clock than `1 token` is not compiled yet", learner.span)
    if write.over is not None and write.over.clock not in ("all", "token"):
        b.fail(codes.BadChoice, f"`over` counts tokens, not {write.over.clock}s", write.over.span, "`over: all`, or `over: 64 tokens`")
    if write.over is not None and write.over.clock == "token" and not _is_count(b, write.over):
        b.fail(codes.BadPeriod, "the context must be a whole number of tokens, at least 1", write.over.span, "such as `over: 64 tokens`")


def _is_count(b: Builder, over: language.Period) -> bool:
    count = b.number(over.count)
    return isinstance(count, int) and count >= 1


def _only_pairs(b: Builder, weight: str, id: str, span: Span) -> None:
    """A weight is a function of the pair alone: anything else would be of the query's tick or of the sample's, unsaid."""
    todo = [weight]
    while todo:
        flow = b.flows[todo.pop()]
        if flow.host != id and flow.op != "number":
            b.fail(codes.NotCompiledYet, f"a weight of `{flow.id}` is not compiled yet", span, "it may have `query`, `key` and numbers")
        todo += flow.args


def ask(b: Builder, expr: Call, here: Context, name: str | None, learner: language.Learner) -> str:
    """`S(q)`: a flow with the query, this tick's key and this tick's value."""
    id = f"{b.prefix}{learner.name}"
    solve = solved_context(b, learner)
    b.arguments(expr, "query")
    query = b.expr(expr.args[0], here)
    axes: Axes = b.flows[solve.key].axes
    b.fits(query, axes, expr.args[0].span, f"the query of `{expr.function}`", axes)
    declared = b.learners[id]
    out = declared.per + declared.store.out_axes
    return b.node("attend", [query, solve.key, solve.value], expr.span, here, name, out, expr.function, learner=id, over=solve.over)


def softmax_scale(graph: LevelGraph, learner: Learner) -> float | None:
    """s where the weight is exp(s * dot(query, key)), the form of scaled dot-product attention; None for another weight."""
    assert learner.solve is not None
    root = graph.flows[learner.solve.weight]
    return _factor(graph, root.args[0], learner.solve) if root.op == "exp" else None


def _factor(graph: LevelGraph, id: str, solve: Solve) -> float | None:
    """s where a flow is s * dot(query, key)."""
    flow = graph.flows[id]
    if flow.op == "dot":
        return 1.0 if set(flow.args) == {solve.query, solve.sample} else None
    if flow.op == "neg":
        inner = _factor(graph, flow.args[0], solve)
        return None if inner is None else -inner
    if flow.op not in ("mul", "div"):
        return None
    left, right = flow.args
    for product, number in ((left, right), (right, left))[: 2 if flow.op == "mul" else 1]:
        inner, value = _factor(graph, product, solve), _number(graph, number)
        if inner is not None and value is not None:
            return number_of(flow.op, [inner, value])
    return None


def _number(graph: LevelGraph, id: str) -> float | None:
    """The value of an expression of numbers, as `fold-constants` would find it."""
    flow = graph.flows[id]
    if flow.op == "number":
        return float(flow.attr("value"))
    values = [_number(graph, arg) for arg in flow.args]
    numbers = [value for value in values if value is not None]
    if not values or len(numbers) < len(values):
        return None
    return number_of(flow.op, numbers) if flow.op in NUMERIC else None


__all__ = ["ask", "is_solved", "softmax_scale", "solved_context"]
