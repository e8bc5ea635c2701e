"""Slopes of one number in many flows, by the chain rule backwards, through all operators that a store written out in flows may use.

`nlc.graph.calculus.derivative` is for objectives of linear memories and refuses what mixes channels; this does not. New flows are made in
an `Algebra`. The slope of a flow may lack axes of it: it is the same along them. A tensor that enters a product `W @ z` gets the outer
product of the slope at the output of the product and of its input z (docs/semantics.md, "Functions of several tensors").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nlc.graph.calculus import Algebra, Coefficient, NotDifferentiable
from nlc.graph.constants import NORM_EPS
from nlc.graph.ir import Attribute, Axes, Axis, Flow, Learner, size_of


def slopes(a: Algebra, loss: str, leaves: Sequence[str]) -> dict[str, Coefficient]:
    """d loss / d leaf for each leaf; 0 where the loss does not depend on it.

    Raises NotDifferentiable at an operator that has no slope, such as a recall of another memory.
    """
    return _slopes(a, loss, leaves, {})[0]


@dataclass(frozen=True)
class Product:
    """A part of the gradient of a tensor: the outer product of `input`, along the axis that its first product contracts, and `slope`.

    Without an input, the slope itself.
    """

    slope: Coefficient
    input: str | None


def product_slopes(a: Algebra, loss: str, leaves: Mapping[str, Learner]) -> dict[str, list[Product]]:
    """The gradient of each tensor as a sum of products; none where the loss does not depend on it.

    `leaves` are flows `tensor` and the learners whose tensors they are. Raises NotDifferentiable as `slopes` does.
    """
    found, products = _slopes(a, loss, tuple(leaves), {leaf: m for leaf, m in leaves.items() if m.store.in_axes})
    for leaf, learner in leaves.items():
        if found[leaf] != 0 and learner.store.in_axes:
            name = learner.store.tensors[0].name
            raise NotDifferentiable(f"its matrix `{name}` is used outside of products", a.flows[leaf].span)
        if found[leaf] != 0:
            products[leaf].append(Product(_whole(a, found[leaf], learner), None))
    return products


def _whole(a: Algebra, s: Coefficient, learner: Learner) -> Coefficient:
    """A slope with all axes of the tensor."""
    if set(learner.store.out_axes) <= set(a.axes(s)):
        return s
    raise NotDifferentiable("its slope is one number for many entries of a tensor", learner.span)


def _slopes(
    a: Algebra, loss: str, leaves: Sequence[str], matrices: Mapping[str, Learner]
) -> tuple[dict[str, Coefficient], dict[str, list[Product]]]:
    """Slopes of the leaves; what products add to those of `matrices` is not multiplied out but listed."""
    chain = _Chain(a)
    products: dict[str, list[Product]] = {leaf: [] for leaf in leaves}
    wanted = a.upstream(loss)
    depends: set[str] = set()
    between: list[Flow] = []
    for id, flow in list(a.flows.items()):
        if id in wanted and (id in leaves or depends.intersection(flow.args)):
            depends.add(id)
            between.append(flow)
    found: dict[str, Coefficient] = {loss: 1}
    for flow in reversed(between):
        s = found.get(flow.id, 0)
        if flow.id not in leaves and s != 0:
            listed = [arg for arg in flow.args if flow.op == "contract" and arg in matrices]
            for arg in listed:
                products[arg].append(chain.product(flow, s, flow.args.index(arg), matrices[arg]))
            for arg, part in chain.parts(flow, s, depends - set(listed)):
                found[arg] = a.add(found.get(arg, 0), part)
    return {leaf: found.get(leaf, 0) for leaf in leaves}, products


class _Chain:
    """What one operator passes on to its operands."""

    def __init__(self, a: Algebra) -> None:
        self.a = a
        self.known: dict[object, str] = {}

    def parts(self, flow: Flow, s: Coefficient, depends: set[str]) -> list[tuple[str, Coefficient]]:
        """(operand, its share of the slope) for the operands that depend on a leaf."""
        mine = {i: arg for i, arg in enumerate(flow.args) if arg in depends}
        if flow.op == "contract":
            return [(arg, self.of_product(flow, s, i)) for i, arg in mine.items()]
        if flow.op == "T":
            return [(arg, self.turned(self.whole(flow, s))) for arg in mine.values()]
        if flow.op in ("slice", "reshape"):
            return [(arg, self.placed(flow, self.whole(flow, s))) for arg in mine.values()]
        full = max((self.a.axes(arg) for arg in flow.args), key=len)  # the axes before a reduction
        return [(arg, self.fitted(self.part(flow, s, i), full, self.a.axes(arg))) for i, arg in mine.items()]

    def part(self, flow: Flow, s: Coefficient, i: int) -> Coefficient:
        """The slope in operand i, with the axes of the widest operand at most."""
        a, x = self.a, flow.args[i]
        other = flow.args[1 - i] if len(flow.args) == 2 else ""
        match flow.op:
            case "sum" | "add":
                return s
            case "mean":
                return a.div(s, size_of(a.axes(x)) // size_of(flow.axes))
            case "neg":
                return a.neg(s)
            case "sub":
                return s if i == 0 else a.neg(s)
            case "mul" | "dot":
                return a.mul(s, other)
            case "div":
                return a.div(s, other) if i == 0 else a.neg(a.div(a.mul(s, flow.id), x))
            case "pow" if i == 0:
                n = a.value(other)
                return a.mul(a.mul(s, n), a.pow(x, a.sub(n, 1)))
            case "pow":
                return a.mul(s, a.mul(flow.id, self.unary("log", other)))
            case "max" | "min":
                strict, loose = ("gt", "ge") if flow.op == "max" else ("lt", "le")
                return a.mul(s, a.mul(0.5, a.add(a.make(strict, x, other), a.make(loose, x, other))))  # a tie: half to each
            case "sg" | "sign" | "lt" | "le" | "gt" | "ge" | "eq" | "ne":
                return 0
            case "rope" if i == 0:  # turned back
                return self.made("rope", (self.whole(flow, s), a.flow(a.neg(other))), flow.axes, theta=flow.attr("theta"))
            case "l2norm" | "rmsnorm" | "layernorm" | "softmax" if flow.attr("learner") is None:
                return self.of_norm(flow, s, x)
        if flow.op in UNARY:
            return a.mul(s, UNARY[flow.op](self, x, flow.id))
        raise NotDifferentiable(f"`{flow.op}` has no slope", flow.span)

    def of_norm(self, flow: Flow, s: Coefficient, x: str) -> Coefficient:
        """Operators along the last axis. With y = (x - mean) / scale: (s - mean(s) - y mean(s y)) / scale."""
        a, y, last = self.a, flow.id, flow.axes[-1]
        if flow.axes.count(last) > 1:
            raise NotDifferentiable(f"`{flow.op}` of a tensor with two axes `{last.name}`", flow.span)
        n = last.size
        if flow.op == "softmax":
            return a.mul(y, a.sub(s, self.summed(a.mul(s, y), last)))
        if flow.op == "l2norm":
            length = a.pow(a.add(self.summed(a.mul(x, x), last), NORM_EPS), -0.5)
            return a.mul(length, a.sub(s, a.mul(y, self.summed(a.mul(s, y), last))))
        centred: Coefficient = x
        if flow.op == "layernorm":
            centred = a.sub(x, a.div(self.summed(x, last), n))
        scale = a.pow(a.add(a.div(self.summed(a.mul(centred, centred), last), n), _eps(flow)), -0.5)
        inner = a.sub(s, a.mul(y, a.div(self.summed(a.mul(s, y), last), n)))
        if flow.op == "layernorm":
            inner = a.sub(inner, a.div(self.summed(s, last), n))
        return a.mul(scale, inner)

    def product(self, flow: Flow, s: Coefficient, i: int, learner: Learner) -> Product:
        """What a product adds to the gradient of its matrix, operand i, as seen from the matrix's first product."""
        a, other = self.a, flow.args[1 - i]
        slope = self.along(flow, s)
        return Product(slope, other) if (i == 0) is learner.store.transposed else Product(other, a.flow(slope))

    def along(self, flow: Flow, s: Coefficient) -> str:
        """The slope of a product as a flow with the axis of its result."""
        a = self.a
        if flow.axes[-1] not in a.axes(s):
            s = a.mul(s, a.make("pow", flow.id, 0))  # the same number along that axis
        return a.flow(s)

    def of_product(self, flow: Flow, s: Coefficient, i: int) -> Coefficient:
        """`W @ z` or `z @ W`: the outer product for the matrix, the product with the transposed matrix for the vector."""
        a, other = self.a, flow.args[1 - i]
        copies = flow.axes[: flow.attr("copies")]
        rest = flow.axes[len(copies) :]
        if len(rest) > 1 and not copies:
            return self.of_matrices(flow, s, i)
        if len(rest) > 1:
            raise NotDifferentiable("a matrix times a matrix", flow.span)
        mine, others = (tuple(axis for axis in a.axes(arg) if axis not in copies) for arg in (flow.args[i], other))
        if not rest:
            return self.fitted(a.mul(s, other), (*copies, *mine), a.axes(flow.args[i]))
        slope = self.along(flow, s)
        if len(mine) == 2:
            left, right, op, axes = (slope, other, "outer", (*rest, *others)) if i == 0 else (other, slope, "outer", (*others, *rest))
        else:
            left, right = (other, slope) if i == 0 else (slope, other)
            op, axes = "contract", mine
        around = tuple(axis for axis in copies if axis in a.axes(left) or axis in a.axes(right))
        made = self.made(op, (left, right), (*around, *axes), copies=len(around))
        return self.fitted(made, (*copies, *mine), a.axes(flow.args[i]))

    def of_matrices(self, flow: Flow, s: Coefficient, i: int) -> Coefficient:
        """`A @ B`: S B^T for A and A^T S for B."""
        whole, other = self.whole(flow, s), self.turned(flow.args[1 - i])
        left, right = (whole, other) if i == 0 else (other, whole)
        return self.made("contract", (left, right), (self.a.axes(left)[0], self.a.axes(right)[1]), copies=0)

    def placed(self, flow: Flow, s: str) -> str:
        """The slope of all entries of an operand of which a slice is taken, or the axes are named anew."""
        axes = self.a.axes(flow.args[0])
        if flow.op == "reshape":
            return self.made("reshape", (s,), axes)
        return self.made("padded", (s,), axes, start=int(flow.attr("start")))

    def turned(self, x: str) -> str:
        rows, columns = self.a.axes(x)
        return self.made("T", (x,), (columns, rows))

    # -- axes -----------------------------------------------------------------------------------------------------------

    def fitted(self, part: Coefficient, full: Axes, wanted: Axes) -> Coefficient:
        """The sum of a part over the axes along which its operand was repeated."""
        for axis in full:
            if axis not in wanted:
                part = self.summed(part, axis)
        return part

    def summed(self, x: Coefficient, axis: Axis) -> Coefficient:
        """The sum over one axis, along which x may be the same."""
        axes = self.a.axes(x)
        if axis not in axes:
            return self.a.mul(x, axis.size)
        return self.made("sum", (self.a.flow(x),), tuple(a for a in axes if a != axis))

    def whole(self, flow: Flow, s: Coefficient) -> str:
        """A slope with all axes of its flow."""
        return self.a.flow(s if self.a.axes(s) == flow.axes else self.a.mul(s, self.a.make("pow", flow.id, 0)))

    def unary(self, op: str, x: Coefficient) -> str:
        return self.made(op, (self.a.flow(x),), self.a.axes(x))

    def made(self, op: str, args: tuple[str, ...], axes: Axes, **attrs: Attribute) -> str:
        """A new flow, once for each operator, operands and axes."""
        key = (op, args, axes, *attrs.items())
        if key not in self.known:
            a = self.a
            a.count += 1
            id = f"{a.prefix}{a.count}"
            a.flows[id] = Flow(id, op, args, attrs, axes, scope=a.learner.scope, host=a.host, span=a.learner.span)
            self.known[key] = id
        return self.known[key]


def _eps(flow: Flow) -> float:
    """What a norm adds under its root."""
    eps = flow.attr("eps")
    return NORM_EPS if eps is None else float(eps)


def _gelu(c: _Chain, x: str, y: str) -> Coefficient:
    """Phi(x) + x phi(x), with the normal distribution Phi and its density phi."""
    a = c.a
    below = a.mul(0.5, a.add(1, c.unary("erf", a.mul(x, 0.5**0.5))))
    return a.add(below, a.mul(a.mul(x, (2 * math.pi) ** -0.5), _bell(c, x, 0.5)))


def _bell(c: _Chain, x: str, by: float) -> Coefficient:
    """exp(-by x^2)."""
    return c.unary("exp", c.a.mul(c.a.mul(x, x), -by))


def _silu(c: _Chain, x: str, y: str) -> Coefficient:
    p = c.unary("sigmoid", x)
    return c.a.add(p, c.a.mul(y, c.a.sub(1, p)))


UNARY: dict[str, Callable[[_Chain, str, str], Coefficient]] = {
    "exp": lambda c, x, y: y,
    "log": lambda c, x, y: c.a.div(1, x),
    "sqrt": lambda c, x, y: c.a.div(0.5, y),
    "abs": lambda c, x, y: c.unary("sign", x),
    "sigmoid": lambda c, x, y: c.a.mul(y, c.a.sub(1, y)),
    "logsigmoid": lambda c, x, y: c.unary("sigmoid", c.a.neg(x)),
    "tanh": lambda c, x, y: c.a.sub(1, c.a.mul(y, y)),
    "relu": lambda c, x, y: c.a.make("gt", x, 0),
    "silu": _silu,
    "gelu": _gelu,
    "softplus": lambda c, x, y: c.unary("sigmoid", x),
    "sin": lambda c, x, y: c.unary("cos", x),
    "cos": lambda c, x, y: c.a.neg(c.unary("sin", x)),
    "elu": lambda c, x, y: c.unary("exp", c.a.make("min", x, 0)),
    "erf": lambda c, x, y: c.a.mul(2 * math.pi**-0.5, _bell(c, x, 1)),
}
"""The slope of an elementwise operator y = f(x)."""
