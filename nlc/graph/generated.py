"""First states that a flow makes: `init: code`, taken at the tokens where a learner begins anew (docs/semantics.md, "Generated weights").

A learner that learns has the flow as its `first`. One without `learn` holds what the flow was when it last began: its calls are written out
as those of a function, whose tensors are values. Where it begins anew at every token such a value is the flow itself; else it is a memory
without a key, w <- (1 - r) w + r flow, with r = 1 where it begins anew and 0 elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nlc.diagnostics import Span
from nlc.graph import codes
from nlc.graph.builder import Builder, Context
from nlc.graph.ir import Attribute, Clock, Flow, Learner, Rule, Store, Write, show_axes
from nlc.graph.ops import CALLABLE
from nlc.graph.resets import reset_of
from nlc.language import spec as language
from nlc.language.expression import Attribute as Part
from nlc.language.expression import Call, Expr, Name, parts_of
from nlc.language.parser import parse
from nlc.language.wording import did_you_mean

DISTRIBUTIONS = {"zeros": 0, "ones": 0, "eye": 0, "normal": 1, "uniform": 2, "constant": 1}
"""The first states that are no flows, with the number of their arguments; a flow of such a name is none in `init`."""


@dataclass
class Generated:
    """One tensor of a learner without `learn`, and the flow that makes it. `leaf`: what calls see, once it is built."""

    learner: language.Learner
    flow: Expr
    leaf: str | None = None
    begun: bool = False


def init_of(b: Builder, learner: language.Learner, tensor: str) -> Expr | None:
    """What `init` says of one tensor: an expression for all, or `{W1: a, W2: b}`."""
    given = learner.init
    if isinstance(given, Call) and given.function == tensor and len(given.args) == 1:  # a map with one entry
        return given.args[0]
    if not isinstance(given, Mapping):
        return given
    if tensor not in given:
        text = f"`init` of `{learner.name}` says nothing of `{tensor}`"
        b.fail(codes.MissingPart, text, learner.spans["init"], "name a first state for each tensor of the store")
    return given[tensor]


def check_names(b: Builder, learner: language.Learner, tensors: tuple[str, ...]) -> None:
    """Refuse first states of tensors that a learner does not have."""
    for name, expr in learner.init.items() if isinstance(learner.init, Mapping) else ():
        if name not in tensors:
            help = did_you_mean(name, tensors) or f"its tensors: {', '.join(tensors)}"
            b.fail(codes.UndefinedName, f"`{learner.name}` has no tensor `{name}`", expr.span, help)


def is_generated(b: Builder, expr: Expr | None) -> bool:
    """Does an `init` name a flow, an input or a learner? Inside a rule it is a number."""
    word = expr.name if isinstance(expr, Name) else expr.function if isinstance(expr, Call) else ""
    if expr is None or b.host is not None or word in DISTRIBUTIONS or word == "learned":
        return False
    flows = {flow.name for flow in b.spec.flows} | {item.name for item in b.spec.inputs}
    for part in parts_of(expr):
        if isinstance(part, Part) or (isinstance(part, Name) and part.name in flows):
            return True
        if isinstance(part, Call) and (part.function in b.local_learners or part.function in b.uses):
            return True
    return False


def generates(b: Builder, learner: language.Learner) -> bool:
    """Is it a learner without `learn` some of whose tensors are made by flows?"""
    given = learner.init
    exprs = tuple(given.values()) if isinstance(given, Mapping) else (given,)
    if isinstance(given, Call) and given.function not in (*b.local_learners, *b.uses, *CALLABLE):
        exprs = given.args
    return not learner.learn and learner.owns is None and any(is_generated(b, expr) for expr in exprs)


def attach_first(b: Builder, learner: language.Learner) -> None:
    """Give the tensors of a learner that learns the flows that they begin as."""
    id = b.id_of(learner.name)
    if learner.learns_from_loss:
        return
    for member in [m for m in b.learners.values() if id in (m.id, m.group) and m.host == b.host_id]:
        tensor = member.store.tensors[0].name
        expr = init_of(b, learner, tensor)
        if not learner.learn or expr is None or not is_generated(b, expr):
            continue
        if member.solve is not None or member.clock is None or member.clock.unit != "token":
            b.fail(codes.NotCompiledYet, f"`{learner.name}` cannot begin as a flow: it does not learn on the clock `token`", expr.span)
        flow = _flow_of(b, learner, member, expr)
        member = b.learners[member.id]
        b.learners[member.id] = replace(member, first=flow, reset=_begins(b, member, member.reset, expr.span))


def held(b: Builder, id: str) -> str:
    """What calls see of a tensor of a learner without `learn`, the flow that `init` was when it last began anew."""
    made, learner = b.generated[id], b.learners[id]
    if made.leaf is None:
        if made.begun:
            text = f"the weights of `{made.learner.name}` are made of what it recalls itself"
            b.fail(codes.TickCycle, text, made.flow.span, "make them of other learners")
        made.begun = True
        flow = _flow_of(b, made.learner, learner, made.flow)
        own = reset_of(b, made.learner, replace(learner, clock=learner.clock or Clock("token", 1)))
        reset = _begins(b, learner, own, made.flow.span)
        always = b.flows[reset].op == "boundary" and b.flows[reset].attr("period") == 1
        made.leaf = _as_it_is(b, learner, flow, made.flow.span) if always else _kept(b, learner, flow, reset, made.flow.span)
    return made.leaf


def _flow_of(b: Builder, learner: language.Learner, member: Learner, expr: Expr) -> str:
    """The flow of an `init`, with the axes of its tensor."""
    flow = b.expr(expr, Context(f"{learner.name}.init"))
    axes = b.flows[flow].axes
    b.fits(flow, axes, expr.span, "`init`")
    if axes != member.axes:
        name = member.store.tensors[0].name
        help = f"`reshape(x, [{', '.join(axis.name for axis in member.axes)}])` names the axes of x anew"
        notes = [(f"`{flow}` has axes {show_axes(axes)}", b.flows[flow].span)]
        b.fail(codes.ShapeMismatch, f"`init` has axes {show_axes(axes)}; `{name}` has {show_axes(member.axes)}", expr.span, help, notes)
    return flow


def _begins(b: Builder, learner: Learner, reset: str | None, span: Span) -> str:
    """1 where a learner begins anew by itself, and at the first token of a sequence; a period of resets has that token too."""
    if reset is not None and b.flows[reset].op == "boundary":
        return reset
    start = b.add(Flow(f"{learner.id}.start", "boundary", attrs={"period": 0}, span=span))
    context = Context(learner.id.removeprefix(b.prefix))
    return start if reset is None else b.node("max", [reset, start], span, context, f"{learner.id}.begins")


def _as_it_is(b: Builder, learner: Learner, flow: str, span: Span) -> str:
    """A tensor that begins anew at every token: nothing is carried."""
    b.learners[learner.id] = replace(learner, first=flow, sharing="sequence", clock=learner.clock or Clock("token", 1))
    attrs: dict[str, Attribute] = {"learner": learner.id, "state": "start"}
    return b.add(Flow(f"{learner.id}:generated", "tensor", (flow,), attrs, learner.axes, span=span))


def _kept(b: Builder, learner: Learner, flow: str, reset: str, span: Span) -> str:
    """A tensor as a memory without a key, written where it begins anew."""
    id, axes = learner.id, learner.store.tensors[0].axes
    here = Context(id.removeprefix(b.prefix), host=id, kept=learner.per)
    pred = b.node("pred", [], span, here, f"{id}.pred", learner.axes, learner=id)
    loss = b.expr(
        parse("-sum(pred * value)"), replace(here, owner=f"{here.owner}.objective", local={"pred": pred, "value": flow}, host=None)
    )
    gradient = b.add(Flow(f"{id}.gradient", "gradient", attrs={"learner": id}, axes=learner.axes, host=id, span=span))
    keep = b.node("sub", [b.constant(1, span), reset], span, replace(here, host=None), f"{id}.keep")
    step = b.node("neg", [b.node("mul", [reset, gradient], span, here, f"{id}.step:mul")], span, here, f"{id}.step")
    period = b.flows[reset].attr("period") or 0
    b.learners[id] = replace(
        learner,
        store=Store(learner.store.tensors, "value", (), axes),
        clock=Clock("token", period or 1),
        sharing="sequence",
        group=None,
        writes=(Write(None, flow, loss, pred, span),),
        at="running",
        keep=keep,
        rule=Rule(gradient=gradient, step=step),
    )
    return b.add(Flow(f"{id}:generated", "recall", (), {"learner": id, "state": "after"}, learner.axes, span=span))
