"""`over: c tokens` with a gradient step: each update sees the last c samples, all at the state that `at` names, each times its `weight`.

In the graph these are c writes of one token. The write of the sample j tokens ago has key, value and weight from flows `delay`, which carry
the last c - 1 of them; before the start of a stream they are zeros, and a key of zeros writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nlc.graph import codes
from nlc.graph.builder import Builder, Context
from nlc.graph.ir import Flow, Learner, Write
from nlc.language import spec as language


def length(b: Builder, learner: Learner, learn: tuple[language.Write, ...], asks: bool) -> int:
    """The number of samples; mistakes, and what is not compiled yet, are refused. `asks`: its store takes a key."""
    write = learn[0]
    over, span = write.over, write.spans.get("over", write.span)
    if over is None:
        if "weight" in write.spans:
            b.fail(codes.MissingPart, "`weight` is the weight of the samples of a context", write.spans["weight"], "add `over: 8 tokens`")
        return 1
    if over.clock != "token":
        text = f"`over: {over.clock}` without `solve: exact` is not compiled yet"
        b.fail(codes.NotCompiledYet, text, span, "`over: 8 tokens` sees the last 8 samples")
    count = b.number(over.count)
    if not isinstance(count, int) or count < 1:
        b.fail(codes.BadPeriod, "the context must be a whole number of tokens, at least 1", span, "such as `over: 8 tokens`")
    if len(learn) > 1 or learner.samples is not None or write.solve == "implicit" or learner.host is not None:
        with_ = "with several writes, with samples along an axis, with an implicit step or in a rule"
        b.fail(codes.NotCompiledYet, f"a context of several tokens {with_} is not compiled yet", span)
    if not asks:
        b.fail(codes.NotCompiledYet, "a context of several tokens of a store without a key is not compiled yet", span)
    return count


def windowed(
    b: Builder,
    learner: Learner,
    write: language.Write,
    first: Write,
    context: Context,
    count: int,
    predict: Callable[[str, int], str],
    objective: Callable[[str, str], str],
) -> tuple[Write, ...]:
    """The writes of the samples of a window, the present one first.

    `predict(key, number)` makes the flow of what the memory answers in the write of that number, `objective(pred, value)` that of the
    objective.
    """
    assert first.key is not None and first.value is not None and first.pred is not None
    here = replace(context, owner=f"{context.owner}.weight")
    weight = rate = None
    if write.weight is not None:
        weight = b.without_ones(b.expr(write.weight, here), learner.per)
        b.fits(weight, learner.per, write.weight.span, "`weight`")
    if write.rate is not None and write.rule is None:
        rate = b.without_ones(b.expr(write.rate, replace(context, owner=f"{context.owner}.rate")), learner.axes)
    _only_samples(b, learner, first, write)
    made = []
    for j in range(count):
        key, value, pred, loss = first.key, first.value, first.pred, first.loss
        if j:
            key, value = (delayed(b, learner, id, part, j, count) for id, part in ((key, "keys"), (value, "values")))
            pred = predict(key, j)
            loss = objective(pred, value)
        factor = weight if weight is None or not j else delayed(b, learner, weight, "weights", j, count)
        if factor is not None and rate is not None:
            factor = _weighted(b, learner, rate, factor, write, context)
        made.append(Write(key, value, loss, pred, write.span, factor or rate))
    return tuple(made)


def _weighted(b: Builder, learner: Learner, rate: str, weight: str, write: language.Write, context: Context) -> str:
    """rate * weight; where each has axes that the other has not, their axes are those of the learner."""
    one, other = b.flows[rate].axes, b.flows[weight].axes
    fits = set(one) <= set(other) or set(other) <= set(one)
    axes = None if fits else tuple(axis for axis in learner.axes if axis in (*one, *other))
    return b.node("mul", [rate, weight], write.span, replace(context, owner=f"{context.owner}.weighted"), axes=axes)


def delayed(b: Builder, learner: Learner, id: str, part: str, by: int, count: int) -> str:
    """A flow as it was some tokens ago."""
    flow = b.flows[id]
    if flow.op == "number":
        return id
    name = f"{learner.id}.{part}:{by}"
    return b.add(Flow(name, "delay", (id,), {"tail": f"{learner.id}.{part}", "by": by, "width": count}, flow.axes, span=flow.span))


def _only_samples(b: Builder, learner: Learner, first: Write, write: language.Write) -> None:
    """Keys and values come with their sample; an objective is of `pred` and `value` alone, else its other flows were of the present."""
    for flow in b.behind(str(first.key), str(first.value)):
        if flow.op in ("recall", "tensor") and flow.attr("state") == "at" and b.learners[flow.attr("learner")].base == learner.id:
            b.fail(codes.NotCompiledYet, "`self` in a key or value of a context of several tokens is not compiled yet", flow.span)
    for flow in b.behind(first.loss, until=[id for id in (first.pred, first.value) if id is not None]):
        if not flow.args and flow.op != "number":
            span = write.minimize.span if write.minimize is not None else write.span
            text = f"`{flow.id}` in the objective of a context of several tokens is not compiled yet"
            b.fail(codes.NotCompiledYet, text, span, "it may have `pred`, `value` and numbers")


__all__ = ["delayed", "length", "windowed"]
