"""The primitive operators: what each needs and the axes and dtype of its result.

An expression may call the operators marked `callable`; the others are made by the compiler. What an operator computes
is written twice, on purpose: literally in `nlc.reference.operators`, and as torch source in `backends`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nlc.graph.ir import ANY, Axes, Axis, Flow, show_axes


class ShapeError(Exception):
    """Axes that do not fit; the builder turns it into a diagnostic with both places."""


@dataclass(frozen=True)
class Op:
    """`arity` is the number of flows it takes (None: any). `elementwise` operators broadcast by axis name."""

    name: str
    arity: int | None
    shape: Callable[[Sequence[Axes]], Axes]
    elementwise: bool = False
    callable: bool = True


def broadcast(args: Sequence[Axes]) -> Axes:
    """The axes of an elementwise result: those of the widest operand, which must contain all the others by name."""
    widest = max(args, key=len)
    for axes in args:
        if axes == widest:
            continue
        names = [axis.name for axis in widest]
        if any(names.count(axis.name) > 1 for axis in axes):
            raise ShapeError(f"{show_axes(axes)} does not match {show_axes(widest)}: an axis of it is there twice")
        for axis in axes:
            if axis not in widest:
                raise ShapeError(f"{show_axes(axes)} does not fit into {show_axes(widest)}")
    return widest


def _same(args: Sequence[Axes]) -> Axes:
    return args[0]


def _needs_axis(args: Sequence[Axes]) -> Axes:
    if not args[0]:
        raise ShapeError("it needs at least one axis, this is one number")
    return args[0]


def _needs_matrix(args: Sequence[Axes]) -> Axes:
    if len(args[0]) < 2:
        raise ShapeError(f"it needs a matrix, this has axes {show_axes(args[0])}")
    return args[0]


def _turned(args: Sequence[Axes]) -> Axes:
    *copies, rows, columns = _needs_matrix(args)
    return (*copies, columns, rows)


def _needs_square(args: Sequence[Axes]) -> Axes:
    if len(args[0]) < 2 or args[0][-1] != args[0][-2]:
        raise ShapeError(f"it needs a square matrix, this has axes {show_axes(args[0])}")
    return args[0]


def _last_axis_gone(args: Sequence[Axes]) -> Axes:
    both = broadcast(args)
    if not both:
        raise ShapeError("it needs at least one axis, these are numbers")
    return both[:-1]


def _scalar(args: Sequence[Axes]) -> Axes:
    return ()


UNARY = (
    "exp",
    "log",
    "sqrt",
    "abs",
    "sigmoid",
    "logsigmoid",
    "tanh",
    "relu",
    "silu",
    "gelu",
    "softplus",
    "sin",
    "cos",
    "sign",
    "elu",
    "erf",
)
BINARY = {"+": "add", "-": "sub", "*": "mul", "/": "div", "^": "pow", "<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne"}

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        *(Op(name, 1, _same, elementwise=True) for name in UNARY),
        *(Op(name, 2, broadcast, elementwise=True, callable=False) for name in BINARY.values()),
        Op("min", 2, broadcast, elementwise=True),
        Op("max", 2, broadcast, elementwise=True),
        Op("neg", 1, _same, elementwise=True, callable=False),
        Op("sg", 1, _same, elementwise=True),
        Op("l2norm", 1, _needs_axis),
        Op("softmax", 1, _needs_axis),
        Op("dot", 2, _last_axis_gone),
        Op("sum", 1, _same),
        Op("mean", 1, _same),
        Op("total", 1, _scalar),
        Op("rmsnorm", 1, _needs_axis),
        Op("layernorm", 1, _needs_axis),
        Op("rope", 2, _needs_axis),
        Op("conv", None, _same),
        Op("linear", 1, _same),
        Op("embed", 1, _scalar),
        Op("unembed", 1, _same),
        Op("slice", 1, _same),
        Op("reshape", 1, _same),
        Op("repeat", 1, _same),
        Op("next", 1, _same),
        Op("new", 1, _scalar),
        Op("age", 0, _scalar),
        Op("cross_entropy", 2, _scalar),
        Op("solve", 2, _scalar),
        Op("newton_schulz", 1, _needs_matrix),
        Op("gram", 1, _scalar),
        Op("T", 1, _turned),
        Op("inverse_root", 1, _needs_square),
        Op("eigenbasis", 1, _needs_square),
        Op("due", 0, _scalar),
        # made by the compiler
        Op("number", 0, _scalar, callable=False),
        Op("word", 0, _scalar, callable=False),
        Op("input", 0, _scalar, callable=False),
        Op("position", None, _scalar, callable=False),
        Op("recall", None, _scalar, callable=False),
        Op("apply", None, _scalar, callable=False),
        Op("pred", 0, _scalar, callable=False),
        Op("gradient", 0, _scalar, callable=False),
        Op("weights", 0, _scalar, callable=False),
        Op("rows", 0, _scalar, callable=False),
        Op("boundary", None, _scalar, callable=False),
        Op("folded", 1, _same, callable=False),
        Op("padded", 1, _same, callable=False),
        Op("project", 1, _scalar, callable=False),
        Op("part", 1, _scalar, callable=False),
        Op("pick", 1, _scalar, callable=False),
        Op("attend", None, _scalar, callable=False),
        Op("proximal", 1, _scalar, callable=False),
        Op("erase", 1, _scalar, callable=False),
        Op("first", 1, _scalar, callable=False),
        Op("delay", None, _same, callable=False),
        Op("asked", 0, _scalar, callable=False),
        Op("sample", 0, _scalar, callable=False),
        Op("tensor", None, _scalar, callable=False),
        Op("contract", 2, _scalar, callable=False),
        Op("outer", 2, _scalar, callable=False),
        Op("size", 0, _scalar, callable=False),
        Op("caller", 0, _scalar, callable=False),
    )
}
CARRYING = ("conv", "attend", "delay", "new")
"""Operators that carry something from tick to tick: their last inputs, their context."""


def carries(flow: Flow) -> bool:
    """Does a flow carry something from tick to tick? The position does where it counts the tokens of a sequence."""
    return flow.op in CARRYING or (flow.op == "position" and bool(flow.args))


CALLABLE = tuple(name for name, op in OPS.items() if op.callable)


def reduce_axes(axes: Axes, axis: str | None, kept: Axes) -> Axes:
    """The axes left by `sum(x)` (all but `kept`) or `sum(x, axis)`."""
    if axis is None:
        return tuple(a for a in axes if a in kept)
    if axis not in [a.name for a in axes]:
        raise ShapeError(f"{show_axes(axes)} has no axis `{axis}`")
    return tuple(a for a in axes if a.name != axis)


def is_any(axes: Axes) -> bool:
    return ANY in axes


__all__ = ["ANY", "BINARY", "CALLABLE", "OPS", "UNARY", "Axis", "Op", "ShapeError", "broadcast", "is_any", "reduce_axes"]
