"""Where a learner begins anew: `reset` of a learner, and `sequence: {starts: ..}` of a spec (docs/semantics.md, "Sequences")."""

from __future__ import annotations

from dataclasses import replace

from nlc.graph import codes
from nlc.graph.builder import Builder, Context, Rejected
from nlc.graph.ir import Flow, Learner, Restart
from nlc.graph.solved import is_whole
from nlc.language import spec as language
from nlc.language.expression import Call, Expr, Name

TRUTHS = ("new", "lt", "le", "gt", "ge", "eq", "ne")
"""Operators whose value is 1 or 0."""
LASTING = ("recall", "tensor", "attend", "conv", "delay", "position", "boundary")
"""Operators that may know something of earlier tokens, which a reset is to end."""


def sequence_starts(b: Builder) -> str | None:
    """The flow that is 1 where a sequence starts, 0 elsewhere; None where a row is one sequence, or it is wrong."""
    sequence = b.spec.sequence
    if sequence is None:
        return None
    try:
        return _truth(b, sequence.starts, "sequence", "starts")
    except Rejected:
        return None


def attach_reset(b: Builder, learner: language.Learner) -> None:
    """Give a learner its own reset, where it has one."""
    reset, id = learner.reset, b.id_of(learner.name)
    members = [m for m in b.learners.values() if id in (m.id, m.group) and m.host == (b.host.id if b.host else None)]
    if reset is None or not members:
        return
    if not learner.learn:
        help = "leave `reset` out, or add `learn:`"
        b.fail(codes.MissingPart, f"`{learner.name}` has a `reset`, but does not learn: it never leaves its first state", reset.span, help)
    if b.host is not None:
        b.fail(codes.NotCompiledYet, "a learner of a rule begins anew with its host", reset.span, "leave `reset` out, reset the host")
    if learner.owns is not None:
        b.learners[id] = replace(members[0], restart=_restart(b, members[0], reset))
        return
    _check(b, members[0], reset)
    if members[0].solve is not None and reset.every is not None and is_whole(members[0].solve):
        segments = replace(members[0].solve, every=_count(b, learner.name, members[0], reset.every))
        b.learners[id] = replace(members[0], solve=segments)
        return
    flow = _when(b, learner.name, members[0], reset)
    for member in members:
        b.learners[member.id] = replace(b.learners[member.id], reset=flow)


def reset_of(b: Builder, learner: language.Learner, member: Learner) -> str | None:
    """The flow that is 1 where a learner begins anew by itself; None where only sequences end it."""
    if learner.reset is None:
        return None
    _check(b, member, learner.reset)
    return _when(b, learner.name, member, learner.reset)


def _check(b: Builder, learner: Learner, reset: language.Reset) -> None:
    """Refuse what a learner in context cannot begin anew with."""
    if learner.clock is None or learner.clock.unit != "token":
        b.fail(codes.NotCompiledYet, "a reset on another clock than `token` is not compiled yet", reset.span)
    if reset.to is not None and not (isinstance(reset.to, Name) and reset.to.name == "init"):
        b.fail(codes.NotCompiledYet, "a reset to another value than `init` is not compiled yet", reset.spans["to"], "`to: init`")


def _restart(b: Builder, owner: Learner, reset: language.Reset) -> Restart:
    """Weights that begin anew as what a learner holds of them: `reset: {every: 50 steps, to: S()}`."""
    assert owner.clock is not None
    state = b.id_of(reset.to.function) if isinstance(reset.to, Call) and not reset.to.args and not reset.to.kwargs else ""
    like = b.learners.get(state)
    if like is None or like.host != owner.id:
        span = reset.spans["to"] if reset.to is not None else reset.span
        help = f"`to: S()`, for a learner S with `store: {{like: {owner.id}}}`"
        b.fail(codes.NotCompiledYet, f"a reset of the weights of `{owner.id}` to another value is not compiled yet", span, help)
    if reset.every is None or reset.every.clock != "step":
        span = reset.span if reset.every is None else reset.every.span
        b.fail(codes.NotCompiledYet, "weights begin anew on the clock `step`", span, "`every: 50 steps`")
    count, period = b.number(reset.every.count), owner.clock.period
    if not isinstance(count, int) or count < 1 or count % period:
        text = f"`{owner.id}` is reset every {count} steps; it must be a multiple of its period, {period} steps"
        b.fail(codes.BadPeriod, text, reset.every.span, f"such as `every: {50 * period} steps`")
    return Restart(count, state)


def _when(b: Builder, name: str, learner: Learner, reset: language.Reset) -> str:
    """The flow that is 1 where a learner begins anew by itself."""
    assert learner.clock is not None
    period = learner.clock.period
    if reset.when is not None:
        if period > 1:
            text = f"`when` may fire inside a period of `{name}`, which is {period} tokens"
            b.fail(
                codes.NotCompiledYet, text, reset.spans["when"], f"`reset: {{every: {4 * period} tokens}}`, or a level of `every: 1 token`"
            )
        return _truth(b, reset.when, name, "reset")
    assert reset.every is not None
    count, span = _count(b, name, learner, reset.every), reset.every.span
    return b.add(Flow(b.fresh(b.flows, f"{b.prefix}{name}.reset"), "boundary", attrs={"period": count}, span=span))


def _count(b: Builder, name: str, learner: Learner, every: language.Period) -> int:
    """The period of a reset, in tokens."""
    assert learner.clock is not None
    span, count, period = every.span, b.number(every.count), learner.clock.period
    if every.clock != "token":
        b.fail(codes.NotCompiledYet, f"a reset on the clock `{every.clock}` is not compiled yet", span, "count tokens")
    if not isinstance(count, int) or count < 1 or count % period:
        what = f"a multiple of the period of its level, {period} tokens" if period > 1 else "a whole number of tokens, at least 1"
        b.fail(codes.BadPeriod, f"`{name}` is reset every {count} tokens; it must be {what}", span, f"such as `every: {4 * period} tokens`")
    return count


def _truth(b: Builder, expr: Expr, owner: str, key: str) -> str:
    """A flow of one number a token that is 1 where the expression is not 0; it may not know earlier tokens."""
    context, name = Context(f"{owner}.{key}"), b.fresh(b.flows, f"{b.prefix}{owner}.{key}")
    flow = b.expr(expr, context)
    flow = b.without_ones(flow, ())
    b.fits(flow, (), expr.span, f"`{key}`")
    if b.flows[flow].op not in TRUTHS:
        flow = b.node("ne", [flow, b.constant(0, expr.span)], expr.span, context, name)
    for each in b.behind(flow):
        slow = each.op in ("recall", "tensor") and _is_slow(b, str(each.attr("learner")))
        if each.op in LASTING and not slow:
            text = f"`{key}` reads `{each.id}`, which remembers earlier tokens; it may depend on this token only, and on `new(..)`"
            b.fail(codes.NotCompiledYet, text, each.span if each.span.file else expr.span, "compute it from the inputs")
        if each.op == "next":
            b.fail(codes.NonCausal, f"`{key}` sees the next token", each.span, "`next` may only feed `loss`")
    if not any(each.op == "input" for each in b.behind(flow)):
        b.fail(codes.MissingPart, f"`{key}` is the same at every token: it depends on no input", expr.span, f"such as `{key}: new(doc)`")
    return flow


def _is_slow(b: Builder, learner: str) -> bool:
    """A tensor that nothing writes in context."""
    names = {b.id_of(each.name) for each in b.spec.learners if each.learn}
    return learner in b.learners and learner not in names and b.learners[learner].group not in names
