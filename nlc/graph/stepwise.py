"""Rules that are not linear in the gradients, where all gradients of a period stand at its start.

Then they are known before any update, and a rule is a chain of flows and memories like any other: its learners are memories of their own,
each with a recurrence of its own, what it makes of their states are flows of the token, and the tensor adds up its steps. All of them are
taken as a whole: a matrix as the vector of its entries.
"""

from __future__ import annotations

from dataclasses import replace

from nlc.graph.calculus import Algebra, Coefficient
from nlc.graph.ir import Clock, Flow, Learner, LevelGraph, Store, pred_id
from nlc.graph.linear import Derivation, General, LinearForm, NotLinear, linear_form
from nlc.graph.rewrite import substitute
from nlc.graph.sequences import POSITION, position
from nlc.graph.slopes import Product


def as_a_whole(learner: Learner) -> Learner:
    """The same tensor without a query: all its entries are one vector."""
    axes = learner.store.tensors[0].axes
    return replace(learner, store=replace(learner.store, in_axes=(), out_axes=axes, transposed=False))


def whole_gradients(a: Algebra, learner: Learner, products: list[tuple[int, Product]]) -> dict[int, str]:
    """For each write the flow of its gradient, with the axes of the learner. The products are those of the tensor as a matrix."""
    found: dict[int, Coefficient] = dict.fromkeys(range(len(learner.writes)), 0)
    for number, product in products:
        found[number] = a.add(found[number], _multiplied(a, learner, product))
    return {number: _spread(a, learner, value) for number, value in found.items()}


def _multiplied(a: Algebra, learner: Learner, product: Product) -> Coefficient:
    """The outer product of input and slope, in the order of the tensor's axes."""
    if product.input is None:
        return product.slope
    slope, axes = a.flow(product.slope), learner.store.tensors[0].axes
    pair = (slope, product.input) if learner.store.transposed else (product.input, slope)
    copies = tuple(axis for axis in learner.per if any(axis in a.axes(each) for each in pair))
    a.count += 1
    id = f"{a.prefix}{a.count}"
    a.flows[id] = Flow(id, "outer", pair, {"copies": len(copies)}, copies + axes, scope=learner.scope, span=learner.span)
    return id


def _spread(a: Algebra, learner: Learner, value: Coefficient) -> str:
    """A flow with all axes of the learner."""
    if a.axes(value) == learner.axes:
        return a.flow(value)
    return a.make("mul", a.make("pow", pred_id(learner.id, 0), 0), value)


def step_by_step(
    graph: LevelGraph, learner: Learner, products: list[tuple[int, Product]]
) -> tuple[LevelGraph, dict[str, LinearForm | NotLinear]]:
    """The forms of a tensor and of the learners of its rule, each a memory of its own; the flows of the rule are flows of the token."""
    a = Algebra(graph, learner)
    gradients = whole_gradients(a, learner, products)
    known = {f.id: gradients[f.attr("write") or 0] for f in a.flows.values() if f.op == "gradient" and f.attr("learner") == learner.id}
    inner = {m.id: _by_itself(m, learner.reset) for m in graph.learners.values() if m.host == learner.id}
    slow = next(
        (f for f in a.flows.values() if f.op == "age" and f.host == learner.id and graph.learners[str(f.attr("learner"))].folds), None
    )
    if slow is not None:
        raise General("its rule asks for the age of a slow learner", slow.span)
    flows = {id: _of_the_token(flow, a, graph.starts) if flow.host == learner.id else flow for id, flow in list(a.flows.items())}
    whole = as_a_whole(learner)
    graph = substitute(graph.with_(flows={**a.flows, **flows}, learners={**graph.learners, **inner, learner.id: whole}), known)
    forms: dict[str, LinearForm | NotLinear] = {}
    for id in inner:
        form, made = linear_form(graph, graph.learners[id])
        if isinstance(form, NotLinear):
            raise General(form.reason, form.span)
        graph, forms[id] = graph.with_(flows=made), form
    derivation = Derivation(graph, graph.learners[learner.id])
    derivation.reset = None  # the loop over periods begins anew by itself
    forms[learner.id] = derivation.summed()
    return graph.with_(flows=derivation.algebra.flows), forms


def _by_itself(learner: Learner, reset: str | None) -> Learner:
    """A learner of a rule as a memory that is written at every token, or at the last of a period, and begins anew where its host does."""
    tensors = learner.store.tensors
    clock = learner.clock if learner.folds else Clock("token", 1)
    return replace(learner, host=None, reset=reset, clock=clock, store=Store(tensors, "value", (), tensors[0].axes))


def _of_the_token(flow: Flow, a: Algebra, starts: str | None) -> Flow:
    """A flow of a rule as a flow of the spec; its learners have made one update a token."""
    if flow.op == "age":
        place = a.flows.setdefault(POSITION, Flow(POSITION, "position", span=flow.span) if starts is None else position(starts))
        return replace(flow, op="add", args=(place.id, a.flow(1)), attrs={}, host=None)
    return replace(flow, host=None)
