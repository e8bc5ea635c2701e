"""The implicit step: the minimum of the objective and of the distance to the kept state, instead of one step of its gradient.

    w <- argmin over w of  objective(w) + |w - keep * w_old|^2 / (2 rate)

For an objective that is quadratic in `pred`, with curvature h, this is the gradient step at `decayed` with the rate
rate / (1 + rate h |key|^2) (Longhorn; Nested Learning, sec. 5).
"""

from __future__ import annotations

from dataclasses import replace

from nlc.graph import codes
from nlc.graph.builder import Builder, Context
from nlc.graph.calculus import Algebra, Coefficient, NotDifferentiable, derivative
from nlc.graph.ir import Learner, LevelGraph, Rule, pred_id
from nlc.language import spec as language


def is_implicit(learner: language.Learner) -> bool:
    return bool(learner.learn) and learner.learn[0].solve == "implicit"


def implicit_rule(b: Builder, learner: Learner, write: language.Write, context: Context) -> Rule:
    """The step of a learner with `solve: implicit`: a flow `proximal` of the rate, from the kept state to the minimum."""
    if write.rule is not None:
        b.fail(
            codes.BadChoice, "`rule` has no meaning for `solve: implicit`: it takes no gradient step", write.spans["rule"], "give a `rate`"
        )
    if write.at is not None:
        b.fail(codes.BadChoice, "`at` has no meaning for `solve: implicit`: the gradient is that of the minimum", write.spans["at"])
    if len(learner.writes) > 1:
        b.fail(codes.NotCompiledYet, "`solve: implicit` with several writes is not compiled yet", learner.writes[1].span)
    if pred_id(learner.id, 0) in Algebra(LevelGraph("", flows=b.flows), learner).upstream(learner.writes[0].loss):
        text = "an objective of `self.W` with `solve: implicit` is not compiled yet"
        b.fail(codes.NotCompiledYet, text, write.spans.get("minimize", write.span), "leave `solve` out, or write the objective of `pred`")
    if curvature(Algebra(LevelGraph("", flows=b.flows), learner), learner) is None:
        text = "the objective of `solve: implicit` must be quadratic in what the memory recalls"
        b.fail(codes.BadChoice, text, write.spans.get("minimize", write.span), "leave `minimize` out, or `solve: gradient`")
    rate = b.constant(1, write.span)
    if write.rate is not None:
        rate = b.expr(write.rate, replace(context, owner=f"{context.owner}.rate"))
        b.fits(rate, learner.per, write.rate.span, "`rate`")
    here = replace(context, host=learner.id)
    axes = learner.axes
    return Rule(step=b.node("proximal", [rate], write.span, here, f"{learner.id}.step", axes, learner=learner.id))


def curvature(a: Algebra, learner: Learner) -> Coefficient | None:
    """d^2 objective / d pred^2, one number a copy; None where it depends on `pred` or differs between channels."""
    (write,) = learner.writes
    assert write.pred is not None
    try:
        slope = a.flow(derivative(a, write.loss, write.pred))
        found = derivative(a, slope, write.pred)
    except NotDifferentiable:
        return None
    if not set(a.axes(found)) <= set(learner.per):
        return None
    return found if not isinstance(found, str) or write.pred not in a.upstream(found) else None
