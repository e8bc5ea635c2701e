"""Learners that are solved exactly when they are asked: nothing is stored but the context, each query gets the minimum over it.

`S(q) = argmin over w of sum over samples i of weight(q, k_i) * 0.5 |w - v_i|^2`, the weighted mean of the values: attention
(Nested Learning, eq. 62). A list of writes is one context made of the samples of each. A weight is a function of the leaves `query` and
`key`; flows of it have the learner as host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nlc.diagnostics import Span
from nlc.graph import codes
from nlc.graph.builder import Builder, Context, Rejected
from nlc.graph.constants import NUMERIC, number_of
from nlc.graph.ir import Axes, Axis, Flow, Learner, LevelGraph, Solve
from nlc.graph.ops import CARRYING
from nlc.language import spec as language
from nlc.language.expression import Call, Name

MEANINGLESS = ("times", "keep", "rate", "rule", "at")
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
    _check(b, declared, learner)
    first = _samples(b, declared, learner, 0, None)
    further = tuple(_samples(b, declared, learner, number, first) for number in range(1, len(learner.learn)))
    return replace(first, also=further)


def _samples(b: Builder, declared: Learner, learner: language.Learner, number: int, first: Solve | None) -> Solve:
    """The samples of one write. All have the axes of the first, `query` and `key` of a weight too."""
    write, ending = learner.learn[number], f".{number + 1}" if number else ""
    _check_write(b, learner, write, number)
    assert write.key is not None and write.value is not None
    here, axis = Context(learner.name, kept=declared.per), _axis(b, write)
    samples = (axis,) if axis is not None else ()
    key = b.expr(write.key, replace(here, owner=f"{learner.name}.key{ending}"))
    inner = tuple(a for a in b.flows[key].axes if a not in declared.per and a != axis)
    axes = b.flows[first.query].axes if first is not None else declared.per + inner
    b.fits(key, samples + axes, write.key.span, "`key`", samples + axes)
    value = b.expr(write.value, replace(here, owner=f"{learner.name}.value{ending}"))
    out = declared.store.out_axes
    b.fits(value, samples + declared.per + out, write.value.span, "`value`", samples + out)
    query = first.query if first is not None else _leaf(b, declared, write, "query", "asked", axes)
    sample = _leaf(b, declared, write, f"key{ending}", "sample", axes)
    weight = b.constant(1, write.span)
    if write.weight is not None:
        local = {"query": query, "key": sample}
        weight = b.expr(write.weight, replace(here, owner=f"{learner.name}.weight{ending}", local=local, host=declared.id))
        b.fits(weight, declared.per, write.weight.span, "`weight`")
        _only_pairs(b, weight, declared.id, write.weight.span)
    over = 0 if write.over is None or write.over.clock == "all" else int(b.number(write.over.count))
    return Solve(key, value, weight, query, sample, over, axis, once=write.over is None)


def _leaf(b: Builder, learner: Learner, write: language.Write, name: str, op: str, axes: Axes) -> str:
    """What stands for a query, or for the key of a sample, in a weight."""
    return b.add(Flow(f"{learner.id}.{name}", op, attrs={"learner": learner.id}, axes=axes, host=learner.id, span=write.span))


def _axis(b: Builder, write: language.Write) -> Axis | None:
    """The axis of `fold: {P: sum}`: a key and a value for each of its entries."""
    if write.fold is None:
        return None
    span = write.spans["fold"]
    if not isinstance(write.fold, dict) or len(write.fold) != 1 or "token" in write.fold:
        help = "`fold: {P: sum}` takes the samples along an axis `P` of key and value"
        b.fail(codes.BadChoice, "this `fold` has no meaning for `solve: exact`: no step is made", span, help)
    ((name, word),) = write.fold.items()
    if word != "sum":
        text = f"`fold: {{{name}: {word}}}` has no meaning for `solve: exact`: all samples count"
        b.fail(codes.BadChoice, text, span, f"write `fold: {{{name}: sum}}`")
    return b.axis(Name(name, span))


def _check(b: Builder, declared: Learner, learner: language.Learner) -> None:
    """What an exact solve needs, what has no meaning for it, and what is not compiled yet."""
    write = learner.learn[0]
    if declared.store.form != "value":
        b.fail(codes.NotCompiledYet, "an exact solve of a matrix is not compiled yet", write.spans["solve"], "`store: {vector: [V]}` is")
    if learner.init is not None:
        place = learner.spans["init"] if isinstance(learner.init, dict) else learner.init.span
        b.fail(codes.BadChoice, "`init` has no meaning for `solve: exact`: nothing is stored", place, "leave it out")
    if declared.read != "after":
        b.fail(
            codes.NotCompiledYet, "a query that does not see its own token is not compiled yet", learner.spans["read"], "leave `read` out"
        )
    if declared.clock is None or (declared.clock.unit, declared.clock.period) != ("token", 1):
        b.fail(codes.NotCompiledYet, "an exact solve on another clock than `1 token` is not compiled yet", learner.span)


def _check_write(b: Builder, learner: language.Learner, write: language.Write, number: int) -> None:
    examples = {"key": "`key: k`", "value": "`value: v`", "over": "`over: all`, or `over: 64 tokens`"}
    for part in ("key", "value", "over")[: 2 if number else 3]:
        if getattr(write, part) is None:
            message = f"`learn` of `{learner.name}` is solved exactly, so it needs `{part}`"
            b.fail(codes.MissingPart, message, write.span, f"add {examples[part]}")
    for key in MEANINGLESS:
        if key in write.spans:
            b.fail(codes.BadChoice, f"`{key}` has no meaning for `solve: exact`: no step is made", write.spans[key], "leave it out")
    if number and "solve" in write.spans:
        b.fail(codes.WrongArguments, "`solve` holds for all writes of a learner", write.spans["solve"], "it stands on the first write")
    if write.minimize is not None:
        what = "an exact solve of another objective than the default is not compiled yet"
        b.fail(codes.NotCompiledYet, what, write.spans["minimize"], "leave `minimize` out: half the squared distance to the value")
    if write.over is not None and write.over.clock not in ("all", "token"):
        b.fail(codes.BadChoice, f"`over` counts tokens, not {write.over.clock}s", write.over.span, "`over: all`, or `over: 64 tokens`")
    if write.over is not None and write.over.clock == "token" and not _is_count(b, write.over):
        b.fail(codes.BadPeriod, "the context must be a whole number of tokens, at least 1", write.over.span, "such as `over: 64 tokens`")


def is_whole(solve: Solve) -> bool:
    """Does a token see all samples since the last reset, so that one after it is the only end of a context?"""
    return not any(context.over for context in solve.contexts)


def check_constant(b: Builder, learner: language.Learner) -> None:
    """A write without `over` is counted once, so its key and value must be the same at every token."""
    solve = b.learners[b.id_of(learner.name)].solve
    for context, write in zip(solve.contexts if solve is not None else (), learner.learn, strict=False):
        for part, id in (("key", context.key), ("value", context.value)):
            moving = _moving(b, id) if context.once else None
            if moving is not None:
                message = f"the {part} of a write without `over` is counted once, but `{moving}` is another at each token"
                help = "add `over: all`, or take a learned tensor: a learner with `init: learned` and no `learn`"
                b.fail(codes.MissingPart, message, write.spans[part], help)


def _moving(b: Builder, id: str) -> str | None:
    """A flow behind this one that differs from token to token."""
    for flow in b.behind(id):
        learner = b.learners.get(str(flow.attr("learner")))
        learns = learner is not None and bool(learner.writes)
        if learns or flow.op in (*CARRYING, "input", "next", "position", "apply"):
            return flow.id
    return None


def _is_count(b: Builder, over: language.Period) -> bool:
    count = b.number(over.count)
    return isinstance(count, int) and count >= 1


def _only_pairs(b: Builder, weight: str, id: str, span: Span) -> None:
    """A weight is a function of the pair alone: anything else would be of the query's tick or of the sample's, unsaid."""
    for flow in b.behind(weight):
        if flow.host != id and flow.op != "number":
            b.fail(codes.NotCompiledYet, f"a weight of `{flow.id}` is not compiled yet", span, "it may have `query`, `key` and numbers")


def ask(b: Builder, expr: Call, here: Context, name: str | None, learner: language.Learner) -> str:
    """`S(q)`: a flow with the query and, write by write, this tick's key and this tick's value."""
    id = f"{b.prefix}{learner.name}"
    solve = solved_context(b, learner)
    b.arguments(expr, "query")
    query = b.expr(expr.args[0], here)
    declared = b.learners[id]
    axes: Axes = b.flows[solve.query].axes
    given = b.flows[query].axes
    several = queries_of(given, axes)
    if not set(axes) <= set(given) or any(axis in declared.store.out_axes for axis in several):
        several = ()  # one query it is to be, or two axes of the answer would have one name
    b.fits(query, axes + several, expr.args[0].span, f"the query of `{expr.function}`", axes)
    out = declared.per + several + declared.store.out_axes
    return b.node("attend", [query, *solve.flows], expr.span, here, name, out, expr.function, learner=id, over=solve.over)


def queries_of(given: Axes, one: Axes) -> Axes:
    """The axes that count the queries which a token asks at once: those that one query does not have."""
    return tuple(axis for axis in given if axis not in one)


def said(graph: LevelGraph, learner: Learner, name: Callable[[str], str]) -> list[str]:
    """The solution in words, a line for the samples of each write; `name` shortens ids."""
    assert learner.solve is not None
    solve, own = learner.solve, f" of its segment of {learner.solve.every} tokens" if learner.solve.every else ""
    scale = softmax_scale(graph, learner)
    weight = f"exp({scale:.6g} dot(q, k_i))" if scale is not None else "weight(q, k_i)"
    samples = ["fixed samples" if c.once else f"the last {c.over} tokens" if c.over else f"all tokens so far{own}" for c in solve.contexts]
    lines = [f"{name(learner.id)}(q) = sum w_i v_i / sum w_i over {' and '.join(dict.fromkeys(samples))}"]
    several = len(samples) > 1 or solve.axis is not None
    for number, (context, which) in enumerate(zip(solve.contexts, samples, strict=True)):
        along = f" along {context.axis}" if context.axis is not None else ""
        where = f", {which}{along}" if several else ""
        lines.append(f"{f'w_i = {weight}, ' if not number else ''}k = {name(context.key)}, v = {name(context.value)}{where}")
    return lines


def softmax_scale(graph: LevelGraph, learner: Learner) -> float | None:
    """s where every weight is exp(s * dot(query, key)), the form of scaled dot-product attention; None for other weights."""
    assert learner.solve is not None
    found = {_exponent(graph, context) for context in learner.solve.contexts}
    return found.pop() if len(found) == 1 else None


def _exponent(graph: LevelGraph, context: Solve) -> float | None:
    root = graph.flows[context.weight]
    return _factor(graph, root.args[0], context) if root.op == "exp" else None


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


__all__ = ["ask", "check_constant", "is_solved", "is_whole", "queries_of", "said", "softmax_scale", "solved_context"]
