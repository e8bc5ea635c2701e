"""Objectives with `self.W @ u`: the matrix read from the side of its values. Their gradient is an error on the side of the keys times u^T.

    W <- F W + b (t - (c . W) u) u^T     is     N <- F N + b u (t - (c . N)^T u)^T     with N = W^T

a memory whose errors see its state, written transposed: its key and probe are u, its target is on the side of the keys, a read is q^T N^T.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nlc.graph.calculus import Coefficient, derivative
from nlc.graph.ir import Flow, Write, pred_id

if TYPE_CHECKING:
    from nlc.graph.linear import Affine, Derivation, LinearWrite


def sees_its_tensor(d: Derivation, write: Write, number: int) -> bool:
    """Does the objective of a write use the tensor itself?"""
    return d.learner.store.form == "map" and pred_id(d.learner.id, number) in d.algebra.upstream(write.loss)


def transposed_write(d: Derivation, write: Write, b: tuple[Coefficient, ...], seen: tuple[Coefficient, ...]) -> LinearWrite:
    """The write of a memory whose objective has one product `self.W @ u`."""
    from nlc.graph.linear import Affine, General, LinearWrite

    a, span = d.algebra, d.graph.flows[write.loss].span
    leaf = pred_id(d.learner.id, 0)
    wanted = a.upstream(write.loss)
    users = [flow for id, flow in d.graph.flows.items() if id in wanted and leaf in flow.args]
    if len(d.learner.writes) > 1 or len(users) != 1 or users[0].op != "contract" or users[0].args[0] != leaf:
        raise General("its objective uses its tensor in another way than one product `self.W @ u`", users[0].span)
    (product,) = users
    u = product.args[1]

    def evaluate(id: str) -> Affine:
        if id == product.id:
            return Affine({u: 1})
        flow = a.flows[id]
        if flow.op in ("pred", "recall", "tensor") and d._is_leaf(flow):
            raise General("its objective mixes both sides of its matrix", flow.span)
        return d._combine(flow, evaluate)

    error = d._evaluate(derivative(a, write.loss, product.id), evaluate)
    outside = d._error(write)
    if outside.terms:
        raise General("its objective is quadratic on both sides of its matrix", span)
    if outside.rest != 0:
        times = multiple(d, outside.rest, u)
        if times is None:
            raise General("what it writes on the side of its values is not what its objective reads there", span)
        error = d._plus(error, Affine(rest=a.mul(times, str(write.key))))
    coefficient = error.terms.get(u, 0)
    c = tuple(a.mul(coefficient, x) for x in seen)
    sees = any(x != 0 for x in c)  # a keep of 0 leaves nothing to see
    return LinearWrite(b, c if sees else None, u, u if sees else None, a.flow(a.neg(error.rest)))


def multiple(d: Derivation, x: Coefficient, u: str) -> Coefficient | None:
    """g where x is g times the flow u, for a number g of each copy."""
    a = d.algebra
    if x == u:
        return 1
    flow: Flow | None = a.flows[x] if isinstance(x, str) else None
    if flow is None or flow.op not in ("neg", "mul", "div"):
        return None
    inner = multiple(d, flow.args[0], u)
    if flow.op == "neg":
        return None if inner is None else a.neg(inner)
    gate = flow.args[1]
    if inner is None and flow.op == "mul":
        inner, gate = multiple(d, flow.args[1], u), flow.args[0]
    if inner is None or not set(a.axes(gate)) <= d.copies:
        return None
    return a.mul(inner, a.value(gate)) if flow.op == "mul" else a.div(inner, a.value(gate))
