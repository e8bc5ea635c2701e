"""Symbolic sums, products and slopes over flows: what the derivation of a learner's linear form is made of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from nlc.diagnostics import Span
from nlc.graph.ir import Axes, Axis, Flow, Learner, LevelGraph, size_of

Coefficient = str | int | float
"""A number, or the id of a flow."""


class NotDifferentiable(Exception):
    def __init__(self, message: str, span: Span) -> None:
        super().__init__(message)
        self.span = span


class Algebra:
    """Makes flows for sums and products, folding the zeros and ones that derivation produces."""

    def __init__(self, graph: LevelGraph, learner: Learner) -> None:
        self.flows = dict(graph.flows)
        self.learner = learner
        self.prefix = f"{learner.id}:form."
        self.host: str | None = learner.host
        self.count = sum(id.startswith(self.prefix) for id in graph.flows)  # another algebra may have made some
        self.known: dict[tuple[str, tuple[Coefficient, ...]], str] = {}

    def axes(self, value: Coefficient) -> Axes:
        return self.flows[value].axes if isinstance(value, str) else ()

    def flow(self, value: Coefficient) -> str:
        if isinstance(value, str):
            return value
        id = f"#{value!r}"
        self.flows.setdefault(id, Flow(id, "number", attrs={"value": value}, span=self.learner.span))
        return id

    def make(self, op: str, *args: Coefficient) -> str:
        if (op, args) not in self.known:
            self.count += 1
            id = f"{self.prefix}{self.count}"
            widest = max((self.axes(arg) for arg in args), key=len)
            missing = dict.fromkeys(axis for arg in args for axis in self.axes(arg) if axis not in widest)
            axes = (*missing, *widest)  # a keep for [H] times a rate for [A] is one number for each [A, H]
            ids = tuple(self.flow(arg) for arg in args)
            self.flows[id] = Flow(id, op, ids, axes=axes, scope=self.learner.scope, host=self.host, span=self.learner.span)
            self.known[op, args] = id
        return self.known[op, args]

    def value(self, x: Coefficient) -> Coefficient:
        """A number where the flow is one."""
        if isinstance(x, str) and self.flows[x].op == "number":
            number: int | float = self.flows[x].attr("value")
            return number
        return x

    def add(self, x: Coefficient, y: Coefficient) -> Coefficient:
        x, y = self.value(x), self.value(y)
        if x == 0:
            return y
        if y == 0:
            return x
        return self.make("add", x, y) if isinstance(x, str) or isinstance(y, str) else x + y

    def neg(self, x: Coefficient) -> Coefficient:
        x = self.value(x)
        if isinstance(x, str):
            flow = self.flows[x]
            return flow.args[0] if flow.op == "neg" else self.make("neg", x)
        return -x

    def sub(self, x: Coefficient, y: Coefficient) -> Coefficient:
        x, y = self.value(x), self.value(y)
        if y == 0:
            return x
        if x == 0:
            return self.neg(y)
        return self.make("sub", x, y) if isinstance(x, str) or isinstance(y, str) else x - y

    def mul(self, x: Coefficient, y: Coefficient) -> Coefficient:
        x, y = self.value(x), self.value(y)
        if x == 0 or y == 0:
            return 0
        if x == 1:
            return y
        if y == 1:
            return x
        if x == -1:
            return self.neg(y)
        if y == -1:
            return self.neg(x)
        return self.make("mul", x, y) if isinstance(x, str) or isinstance(y, str) else x * y

    def div(self, x: Coefficient, y: Coefficient) -> Coefficient:
        x, y = self.value(x), self.value(y)
        if y == 1 or x == 0:
            return x
        return self.make("div", x, y) if isinstance(x, str) or isinstance(y, str) else x / y

    def pow(self, x: Coefficient, y: Coefficient) -> Coefficient:
        y = self.value(y)
        if y == 1:
            return x
        if y == 0:
            return 1
        return self.make("pow", x, y)

    def reduced(self, x: Coefficient, over: Collection[Axis]) -> Coefficient:
        """The sum over these axes."""
        id = self.make("sum", x)
        self.flows[id] = replace(self.flows[id], axes=tuple(axis for axis in self.axes(x) if axis not in over))
        return id

    def first(self, x: Coefficient, samples: Axis, fill: int) -> str:
        """x at the first sample of a token, `fill` at the others."""
        id = self.make("first", x)
        self.flows[id] = replace(self.flows[id], axes=(samples, *self.axes(x)), attrs={"fill": fill, "samples": samples.size})
        return id

    def upstream(self, id: str) -> set[str]:
        seen: set[str] = set()
        stack = [id]
        while stack:
            each = stack.pop()
            if each not in seen:
                seen.add(each)
                stack.extend(self.flows[each].args)
        return seen


def derivative(a: Algebra, loss: str, leaf: str) -> Coefficient:
    """d loss / d leaf by the chain rule, backwards through the flows between them; new flows are made in `a`."""
    wanted = a.upstream(loss)
    depends = {leaf}
    between = []
    for id in list(a.flows):
        if id in wanted and (id == leaf or depends.intersection(a.flows[id].args)):
            depends.add(id)
            between.append(id)
    slope: dict[str, Coefficient] = {loss: 1}
    for id in reversed(between):
        s = slope.get(id, 0)
        if id != leaf and s != 0:
            for arg, part in _chain(a, a.flows[id], s, depends):
                slope[arg] = a.add(slope.get(arg, 0), part)
    return slope.get(leaf, 0)


def _chain(a: Algebra, flow: Flow, s: Coefficient, depends: set[str]) -> list[tuple[str, Coefficient]]:
    """The slopes that one operator passes on to the operands that depend on the leaf."""
    x, *more = flow.args
    y = more[0] if more else ""
    match flow.op:
        case "sum":
            parts = [(x, s)]
        case "mean":
            parts = [(x, a.div(s, size_of(a.flows[x].axes) // size_of(flow.axes)))]
        case "neg":
            parts = [(x, a.neg(s))]
        case "add":
            parts = [(x, s), (y, s)]
        case "sub":
            parts = [(x, s), (y, a.neg(s))]
        case "mul" | "dot":
            parts = [(arg, a.mul(s, other)) for arg, other in ((x, y), (y, x)) if arg in depends]
        case "div" if y not in depends:
            parts = [(x, a.div(s, y))]
        case "pow" if a.flows[y].op == "number":
            n = a.flows[y].attr("value")
            parts = [(x, a.mul(a.mul(s, n), a.pow(x, n - 1)))]
        case _:
            raise NotDifferentiable(f"its objective uses `{flow.op}` on what it recalls", flow.span)
    found = [(arg, part) for arg, part in parts if arg in depends]
    widest = max((a.flows[arg].axes for arg in flow.args), key=len)
    if any(set(a.flows[arg].axes) != set(widest) for arg, _ in found):  # axes are matched by name, in any order
        raise NotDifferentiable("its objective mixes the channels of what it recalls", flow.span)
    return found
