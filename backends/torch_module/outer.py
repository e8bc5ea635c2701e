"""The update of the weights: the rule of an outer level as functions on one of its tensors at a time.

    total(w, g, *states, age, *params) -> sums     parts of what is summed over all tensors, a tensor's own
    numbers(age, *params, *shared, *sums)          numbers that are the same for all tensors, and the new shared states
    update(w, g, *states, *numbers) -> None        one application of the rule, in place

An elementwise rule may be given several tensors end to end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nlc.backends.torch_module.expressions import CALLS, INLINE, PRODUCT, Code, Expressions, Namer, identifier, show
from nlc.graph.ir import Axes, Flow, Learner
from nlc.graph.ops import OPS
from nlc.graph.outer import Outer


@dataclass(frozen=True)
class OuterUpdate:
    """What a driver must know of the functions of an outer level; `text` is their source.

    `states` and `shared` are ids of learners; `sums` and `numbers` count what the functions return before the shared states.
    `elementwise`, `summed_elementwise`: `update`, and what `total` sums, may be given tensors end to end.
    """

    name: str
    owner: str
    text: tuple[str, ...]
    states: tuple[str, ...]
    shared: tuple[str, ...]
    params: tuple[str, ...]
    sums: int
    numbers: int
    elementwise: bool
    summed_elementwise: bool
    uses: frozenset[str]
    """Functions of the quarry that they call."""

    @property
    def functions(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The functions on tensors: elementwise ones, and others."""
        made = [(f"{self.name}_update", self.elementwise)] + ([(f"{self.name}_total", self.summed_elementwise)] if self.sums else [])
        return tuple(name for name, is_so in made if is_so), tuple(name for name, is_so in made if not is_so)


def outer_update(outer: Outer) -> OuterUpdate:
    """The functions of one outer level."""
    graph, owner = outer.graph, outer.owner
    name = identifier(owner.id)
    params = tuple(id for id in graph.inputs if graph.flows[id].axes == () and any(id in graph.upstream(r) for r in _ends(outer)))
    update = _Update(outer, params)
    text = update.function(f"{name}_update")
    shared = _Numbers(outer, params)
    sums = outer.totals(*update.numbers, *(str(end) for m in outer.shared for end in _ends_of(m)))
    numbers = shared.function(f"{name}_numbers", tuple(update.numbers), sums)
    totals = _Totals(outer, params)
    parts = [totals.function(f"{name}_total", sums)] if sums else []
    return OuterUpdate(
        name,
        owner.id,
        (*parts, *([numbers] if update.numbers or outer.shared else []), text),
        tuple(m.id for m in outer.of_tensors),
        tuple(m.id for m in outer.shared),
        params,
        len(sums),
        len(update.numbers),
        update.is_elementwise,
        totals.is_elementwise,
        frozenset(update.used | shared.used | totals.used),
    )


WHOLE = ("gradient", "weights", "recall", "total", "age", "number")
"""Operators on whole tensors that do not care where one ends."""


def _ends(outer: Outer) -> Iterator[str]:
    for m in (outer.owner, *outer.inner):
        yield from _ends_of(m)


def _ends_of(learner: Learner) -> Iterator[str]:
    yield from (id for id in (learner.keep, learner.rule.keep, learner.rule.step) if id is not None)


class _Writer(Expressions):
    """A function of the rule; each flow is written when something asks for it."""

    def __init__(self, outer: Outer, params: tuple[str, ...]) -> None:
        super().__init__(outer.graph, Namer(outer.owner.id))
        self.outer, self.params = outer, params
        for word in ("w", "g", "age"):
            self.name.names[f"reserved {word}"] = word
        self.variables.update(params)
        self.lines: list[str] = []
        self.new: dict[str, str] = {}
        self.seen: set[str] = set()

    @property
    def is_elementwise(self) -> bool:
        """Is what it makes of a tensor made of its elements one by one?"""
        ops = {self.graph.flows[id].op for id in self.seen & self.outer.differing}
        return all(OPS[op].elementwise or op in WHOLE for op in ops)

    def arguments(self, learners: tuple[Learner, ...]) -> list[str]:
        return [self.name(m.id) for m in learners]

    def head(self, name: str, arguments: list[str], returns: str, doc: str) -> list[str]:
        return [f"def {name}({', '.join(f'{a}: Tensor' for a in arguments)}) -> {returns}:", f'    """{doc}"""']

    def updated(self, learner: Learner) -> str:
        """The variable of the new state of a learner."""
        if learner.id not in self.new:
            self.new[learner.id] = ""
            value = self.advanced(learner, self.name(learner.id))
            self.new[learner.id] = self.name(f"{learner.id}:new")
            self.lines.append(f"    {self.new[learner.id]} = {value}  # {learner.span.file}:{learner.span.line + 1}")
        return self.new[learner.id]

    def advanced(self, learner: Learner, old: str) -> str:
        """keep * old + step."""
        assert learner.rule.step is not None
        factors = [self.value(keep).at(7) for keep in (learner.keep, learner.rule.keep) if keep is not None]
        return f"{' * '.join([*factors, old])} + {self.value(learner.rule.step).at(5)}"

    def value(self, id: str) -> Code:
        """The expression of a flow; what is read twice, or named, gets a variable first."""
        flow = self.graph.flows[id]
        self.seen.add(id)
        if flow.op == "number" or id in self.variables:
            return self.code(id)
        for arg in flow.args:
            self.value(arg)
        if flow.op == "recall" and flow.attr("state") == "after":
            self.updated(self.graph.learners[flow.attr("learner")])
        plain = flow.op in ("gradient", "weights", "recall", "age", "size")
        if not self.constant(id) and (len(self.graph.readers.get(id, ())) > 1 or ":" not in id) and not plain:
            text = self.operator(flow).text
            self.variables.add(id)
            self.lines.append(f"    {self.name(id)} = {text}  # {show(flow).split('  ')[-1]}")
        return self.code(id)

    def aligned(self, code: Code, axes: Axes, target: Axes) -> Code:
        return code

    def constant(self, id: str) -> bool:
        """A flow made of numbers and sizes: a Python number."""
        flow = self.graph.flows[id]
        return flow.op in ("number", "size") or (flow.op in INLINE - CALLS.keys() and all(map(self.constant, flow.args)))

    def _tensor(self, code: Code, id: str, wanted: bool) -> Code:
        return Code(f"torch.tensor({code.text}, dtype=torch.float64)") if wanted and self.constant(id) else code

    def _extreme(self, flow: Flow, args: list[Code], kind: str) -> Code:
        constant = [self.constant(id) for id in flow.args]
        if all(constant):
            return Code(f"{kind}({args[0].text}, {args[1].text})")
        if any(constant):
            tensor, number = (args[1], args[0]) if constant[0] else (args[0], args[1])
            return Code(f"torch.clamp({tensor.text}, {'max' if kind == 'min' else 'min'}={number.text})")
        return Code(f"torch.{kind}imum({args[0].text}, {args[1].text})")

    def _size(self, flow: Flow, args: list[Code]) -> Code:
        axes = [axis.name for axis in self.outer.owner.axes]
        return Code(f"w.shape[{axes.index(flow.attr('axis')) - len(axes)}]")

    def _recall(self, flow: Flow, args: list[Code]) -> Code:
        learner = self.graph.learners[flow.attr("learner")]
        if flow.attr("state") == "at" and learner.at == "decayed" and learner.keep is not None:
            return Code(f"{self.value(learner.keep).at(PRODUCT)} * {self.name(learner.id)}", PRODUCT)
        return Code(self.updated(learner) if flow.attr("state") == "after" else self.name(learner.id))

    def _gradient(self, flow: Flow, args: list[Code]) -> Code:
        return Code("g")

    def _weights(self, flow: Flow, args: list[Code]) -> Code:
        return Code("w")

    def _age(self, flow: Flow, args: list[Code]) -> Code:
        period = self.outer.period(self.graph.learners[flow.attr("learner")])
        return Code("age" if period == 1 else f"torch.floor(age / {period})")


class _Update(_Writer):
    """The new weights and states of one tensor; numbers that are the same for all tensors are arguments."""

    def __init__(self, outer: Outer, params: tuple[str, ...]) -> None:
        super().__init__(outer, params)
        self.variables.clear()
        self.numbers: list[str] = []

    def function(self, name: str) -> str:
        states = self.outer.of_tensors
        old = self.arguments(states)
        new = [(self.name(f"{m.id}:new"), x) for m, x in zip(states, old, strict=True)]
        w = self.advanced(self.outer.owner, "w")
        for m in states:
            self.updated(m)
        arguments = ["w", "g", *old, *(self.name(id) for id in self.numbers)]
        head = self.head(name, arguments, "None", "One application of the rule to a tensor, in place.")
        self.lines.append(f"    w.copy_({w})")
        return "\n".join([*head, *self.lines, *(f"    {x}.copy_({value})" for value, x in new)])

    def value(self, id: str) -> Code:
        if id not in self.outer.differing and not self.constant(id) and id not in self.variables:
            self.variables.add(id)
            self.numbers.append(id)
        return super().value(id)


class _Numbers(_Writer):
    """What is the same for all tensors."""

    def function(self, name: str, numbers: tuple[str, ...], sums: tuple[Flow, ...]) -> str:
        shared = self.outer.shared
        self.variables.update(flow.id for flow in sums)
        arguments = ["age", *map(self.name, self.params), *self.arguments(shared), *(self.name(flow.id) for flow in sums)]
        results = [self.value(id).text for id in numbers]
        states = [self.updated(m) for m in shared]
        head = self.head(name, arguments, "tuple[Tensor, ...]", "Numbers that are the same for all tensors; `age` counts updates.")
        return "\n".join([*head, *self.lines, f"    return ({', '.join([*results, *states])},)"])


class _Totals(_Writer):
    """A tensor's part of what is summed over all of them."""

    def function(self, name: str, sums: tuple[Flow, ...]) -> str:
        arguments = ["w", "g", *self.arguments(self.outer.of_tensors), "age", *map(self.name, self.params)]
        results = [f"{self.value(flow.args[0]).at(9)}.sum()" for flow in sums]
        head = self.head(name, arguments, "tuple[Tensor, ...]", "A tensor's part of what is summed over all tensors.")
        return "\n".join([*head, *self.lines, f"    return ({', '.join(results)},)"])
