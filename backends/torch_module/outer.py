"""The update of the weights: the rule of an outer level as functions on one of its tensors at a time.

    total(w, g, *states, age, *params) -> sums     parts of what is summed over all tensors, a tensor's own
    numbers(age, *params, *shared, *sums)          numbers that are the same for all tensors, and the new shared states
    update(w, g, *states, *numbers) -> None        one application of the rule, in place; or, differentiated, what is new

A rule with slow learners has these once for each set of periods that can end together; a function has no argument for what it leaves
alone. An elementwise rule may be given several tensors end to end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nlc.backends.torch_module.expressions import ATOM, CALLS, INLINE, PRODUCT, Code, Expressions, Namer, identifier, show
from nlc.graph.ir import ANY, Axes, Flow, Learner
from nlc.graph.ops import OPS
from nlc.graph.outer import Outer


@dataclass(frozen=True)
class Variant:
    """The functions of the updates at which the periods `due` end, named with `suffix`.

    `states` are the states of a tensor that they take. `sums` and `numbers` count what the functions return before the states of all
    tensors. `elementwise`, `summed_elementwise`: `update`, and what `total` sums, may be given tensors end to end.
    """

    due: tuple[int, ...]
    suffix: str
    states: tuple[str, ...]
    sums: int
    numbers: int
    elementwise: bool
    summed_elementwise: bool

    def functions(self, name: str) -> Iterator[tuple[str, bool]]:
        """The functions on tensors: (name, is it elementwise)."""
        yield f"{name}_update{self.suffix}", self.elementwise
        if self.sums:
            yield f"{name}_total{self.suffix}", self.summed_elementwise


@dataclass(frozen=True)
class OuterUpdate:
    """What a driver must know of the functions of an outer level; `text` is their source, `uses` what they call of the quarry."""

    outer: Outer
    text: tuple[str, ...]
    params: tuple[str, ...]
    variants: tuple[Variant, ...]
    uses: frozenset[str]
    in_place: bool = True

    @property
    def name(self) -> str:
        """What the names of the functions begin with."""
        return identifier(self.outer.owner.id)

    @property
    def functions(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The functions on tensors: elementwise ones, and others."""
        made = [each for variant in self.variants for each in variant.functions(self.name)]
        return tuple(name for name, is_so in made if is_so), tuple(name for name, is_so in made if not is_so)

    def variant(self, age: int) -> Variant:
        """The functions of the update with this number, counted from 1."""
        due = tuple(period for period in self.outer.periods if age % period == 0)
        return next(each for each in self.variants if each.due == due)


def calls(update: OuterUpdate, variant: Variant, shared: list[str], by_row: bool = False) -> Iterator[str]:
    """The statements of one update of the tensors in `columns`: sums over them, numbers, the new values of `shared` states, in place.

    by_row: each row of a tensor is one by itself.
    """
    name, sums = f"{update.name}_total{variant.suffix}", "*sums" if variant.sums else ""
    columns, old = "columns", shared
    if not update.in_place:
        columns, old = "before", [f"{state}.clone()" for state in shared]
        yield "before = [[x.clone() for x in column] for column in columns]"
    if variant.sums and by_row:
        yield f"sums = summed_rows({name}, {columns}, (age,))"
    elif variant.sums:
        yield f"sums = summed({name}, {columns}, (age,), joined={variant.summed_elementwise})"
    if variant.numbers or shared:
        yield f"numbers = {update.name}_numbers{variant.suffix}({', '.join(filter(None, ['age', *old, sums]))})"
    for i, state in enumerate(shared):
        yield f"{state}.copy_(numbers[{variant.numbers + i}])"
    numbers = "()" if not variant.numbers else f"numbers[:{variant.numbers}]" if shared else "numbers"
    name = f"{update.name}_update{variant.suffix}"
    if not update.in_place:
        yield f"each_moved({name}, before, columns, {numbers}, by_row={by_row})"
    else:
        yield (
            f"each_row({name}, columns, {numbers})" if by_row else f"each_tensor({name}, columns, {numbers}, joined={variant.elementwise})"
        )


def outer_update(outer: Outer, in_place: bool = True) -> OuterUpdate:
    """The functions of one outer level."""
    graph, name = outer.graph, identifier(outer.owner.id)
    used = graph.upstream(*outer.ends)
    params = tuple(id for id in graph.inputs if id in used)
    text: list[str] = []
    variants: list[Variant] = []
    uses: set[str] = set()
    for due in outer.due_together():
        suffix = "".join(f"_{period}" for period in due)
        update, numbers, totals = _Update(outer, params, due), _Numbers(outer, params, due), _Totals(outer, params, due)
        update.write()
        shared = (id for m in outer.shared if outer.is_due(m, due) for id in _ends_of(m))
        sums = outer.totals(*update.numbers, *shared)
        totals.write(sums)
        states = tuple(key for key in outer.keys if key in update.touched | totals.touched)
        text += [totals.function(f"{name}_total{suffix}", states)] if sums else []
        text += [numbers.function(f"{name}_numbers{suffix}", update.numbers, sums)] if update.numbers or outer.shared else []
        text.append(update.function(f"{name}_update{suffix}", states, in_place))
        variants.append(Variant(due, suffix, states, len(sums), len(update.numbers), update.is_elementwise, totals.is_elementwise))
        uses |= update.used | numbers.used | totals.used
    return OuterUpdate(outer, tuple(text), params, tuple(variants), frozenset(uses), in_place)


WHOLE = ("gradient", "weights", "rows", "recall", "total", "age", "number", "folded")
"""Operators on whole tensors that do not care where one ends."""


def _ends_of(learner: Learner) -> Iterator[str]:
    yield from (id for id in (learner.keep, learner.rule.keep, learner.rule.step) if id is not None)


class _Writer(Expressions):
    """A function of the rule at updates of one kind; each flow is written when something asks for it."""

    def __init__(self, outer: Outer, params: tuple[str, ...], due: tuple[int, ...]) -> None:
        super().__init__(outer.graph, Namer(outer.owner.id))
        self.outer, self.params, self.due = outer, params, due
        for word in ("w", "g", "gram", "age"):
            self.name.names[f"reserved {word}"] = word
        self.variables.update(params)
        self.lines: list[str] = []
        self.new: dict[str, str] = {}
        self.seen: set[str] = set()
        self.touched: set[str] = set()

    @property
    def is_elementwise(self) -> bool:
        """Is what it makes of a tensor made of its elements one by one?"""
        ops = {self.graph.flows[id].op for id in self.seen & self.outer.differing}
        return all(OPS[op].elementwise or op in WHOLE for op in ops)

    @property
    def given(self) -> list[str]:
        """What all functions on a tensor begin with; `gram` [I, I] is x x^T of its inputs, folded as the loss."""
        return ["w", "g", "gram"] if self.outer.reads_rows else ["w", "g"]

    def old(self, key: str) -> str:
        """The variable of a state as it was."""
        self.touched.add(key)
        return self.name(key)

    def head(self, name: str, arguments: list[str], returns: str, doc: str) -> list[str]:
        return [f"def {name}({', '.join(f'{a}: Tensor' for a in arguments)}) -> {returns}:", f'    """{doc}"""']

    def updated(self, learner: Learner) -> str:
        """The variable of the new state of a learner; of the old one where its period does not end."""
        if not self.outer.is_due(learner, self.due):
            return self.old(learner.id)
        if learner.id not in self.new:
            self.new[learner.id] = ""
            value = self.advanced(learner, self.old(learner.id))
            self.new[learner.id] = self.name(f"{learner.id}:new")
            self.lines.append(f"    {self.new[learner.id]} = {value}  # {learner.span.file}:{learner.span.line + 1}")
        return self.new[learner.id]

    def moved(self) -> str:
        """The variable of the new weights."""
        id = self.outer.owner.id
        if id not in self.new:
            value = self.advanced(self.outer.owner, "w")
            self.new[id] = self.name(f"{id}:new")
            self.lines.append(f"    {self.new[id]} = {value}")
        return self.new[id]

    def advanced(self, learner: Learner, old: str) -> str:
        """keep * old + step; the step alone where nothing is kept."""
        assert learner.rule.step is not None
        if learner.keep is not None and self.graph.flows[learner.keep].attr("value") == 0:
            return self.value(learner.rule.step).at(5)
        factors = [self.value(keep).at(7) for keep in (learner.keep, learner.rule.keep) if keep is not None]
        return f"{' * '.join([*factors, old])} + {self.value(learner.rule.step).at(5)}"

    def value(self, id: str) -> Code:
        """The expression of a flow; what is read twice, or named, gets a variable first."""
        flow = self.graph.flows[id]
        self.seen.add(id)
        if flow.op == "number" or id in self.variables:
            return self.code(id)
        if (left := self.without_zero(flow)) is not None:
            return self.value(left)
        for arg in flow.args:
            self.value(arg)
        if flow.op == "recall" and flow.attr("state") == "after":
            self.updated(self.graph.learners[flow.attr("learner")])
        if flow.op == "weights" and flow.attr("state") == "after":
            self.moved()
        plain = flow.op in ("gradient", "weights", "rows", "recall", "age", "size")
        if not self.constant(id) and (len(self.graph.readers.get(id, ())) > 1 or ":" not in id) and not plain:
            text = self.operator(flow).text
            self.variables.add(id)
            self.lines.append(f"    {self.name(id)} = {text}  # {show(flow).split('  ')[-1]}")
        return self.code(id)

    def is_zero(self, id: str) -> bool:
        """Is it something times `due` of a learner whose period does not end?"""
        flow = self.graph.flows[id]
        if flow.op == "due":
            return not self.outer.is_due(self.graph.learners[flow.attr("learner")], self.due)
        return flow.op in ("mul", "neg") and any(map(self.is_zero, flow.args))

    def without_zero(self, flow: Flow) -> str | None:
        """The operand that is left of a sum whose other one is zero."""
        return flow.args[0] if flow.op in ("add", "sub") and self.is_zero(flow.args[1]) else None

    def code(self, id: str) -> Code:
        left = self.without_zero(self.graph.flows[id]) if id not in self.variables else None
        return super().code(id) if left is None else self.code(left)

    def operand(self, id: str, target: Axes) -> Code:
        """Aligned from the right: copies of a matrix stand before its axes. What is the same for all tensors is one number."""
        axes = self.graph.flows[id].axes
        if id not in self.outer.differing or ANY in target or axes == target:
            return self.code(id)
        return super().operand(id, target)

    def aligned(self, code: Code, axes: Axes, target: Axes) -> Code:
        text, order = code.at(ATOM), [axes.index(axis) for axis in target if axis in axes]
        text = text if order == sorted(order) else f"{text}.mT"
        index = ["None" if axis not in axes else ":" for axis in target]
        return Code(f"{text}[{', '.join(['...', *index])}]" if "None" in index else text)

    def _reduce(self, flow: Flow, x: Code, kind: str) -> Code:
        if ANY in self.graph.flows[flow.args[0]].axes:
            return Code(f"{x.at(ATOM)}.{kind}()")
        return super()._reduce(flow, x, kind)

    def constant(self, id: str) -> bool:
        """A flow made of numbers and sizes: a Python number."""
        flow = self.graph.flows[id]
        return flow.op in ("number", "size", "due") or (flow.op in INLINE - CALLS.keys() and all(map(self.constant, flow.args)))

    def is_number(self, id: str) -> bool:
        return self.constant(id)

    def _size(self, flow: Flow, args: list[Code]) -> Code:
        axes = [axis.name for axis in self.outer.owner.axes]
        return Code(f"w.shape[{axes.index(flow.attr('axis')) - len(axes)}]")

    def _recall(self, flow: Flow, args: list[Code]) -> Code:
        learner = self.graph.learners[flow.attr("learner")]
        if flow.attr("state") == "at" and learner.at == "decayed" and learner.keep is not None:
            return Code(f"{self.value(learner.keep).at(PRODUCT)} * {self.old(learner.id)}", PRODUCT)
        return Code(self.updated(learner) if flow.attr("state") == "after" else self.old(learner.id))

    def _due(self, flow: Flow, args: list[Code]) -> Code:
        return Code(str(int(self.outer.is_due(self.graph.learners[flow.attr("learner")], self.due))))

    def _T(self, flow: Flow, args: list[Code]) -> Code:
        return Code(f"{args[0].at(9)}.mT")

    def _contract(self, flow: Flow, args: list[Code]) -> Code:
        return Code(f"{args[0].at(PRODUCT)} @ {args[1].at(PRODUCT + 1)}", PRODUCT)

    def _inverse_root(self, flow: Flow, args: list[Code]) -> Code:
        self.used.add("inverse_root")
        return Code(f"inverse_root({args[0].text}, {flow.attr('power')}, {flow.attr('eps')})")

    def _eigenbasis(self, flow: Flow, args: list[Code]) -> Code:
        return Code(f"torch.linalg.eigh({args[0].text})[1]")

    def _folded(self, flow: Flow, args: list[Code]) -> Code:
        return Code(f"{self.old(self.outer.sum_of(flow.attr('learner')))} + {args[0].at(5)}", 5)

    def _gradient(self, flow: Flow, args: list[Code]) -> Code:
        return Code("g")

    def _erase(self, flow: Flow, args: list[Code]) -> Code:
        return Code("w @ gram", PRODUCT)

    def _rows(self, flow: Flow, args: list[Code]) -> Code:
        return Code("gram")

    def _weights(self, flow: Flow, args: list[Code]) -> Code:
        return Code(self.moved() if flow.attr("state") == "after" else "w")

    def _age(self, flow: Flow, args: list[Code]) -> Code:
        period = self.outer.period(self.graph.learners[flow.attr("learner")])
        return Code("age" if period == 1 else f"torch.floor(age / {period})")


@dataclass(frozen=True)
class End:
    """What a tensor is after an update: `is` a value, `plus` one, or `zero`."""

    kind: str
    text: str = ""

    def in_place(self, key: str) -> str:
        return {"is": f"{key}.copy_({self.text})", "plus": f"{key}.add_({self.text})", "zero": f"{key}.zero_()"}[self.kind]

    def value(self, key: str) -> str:
        return {"is": self.text, "plus": f"{key} + ({self.text})", "zero": f"torch.zeros_like({key})"}[self.kind]


class _Update(_Writer):
    """The new weights and states of one tensor; numbers that are the same for all tensors are arguments."""

    def __init__(self, outer: Outer, params: tuple[str, ...], due: tuple[int, ...]) -> None:
        super().__init__(outer, params, due)
        self.variables.clear()
        self.numbers: list[str] = []

    def write(self) -> None:
        """The lines of the function, and what is new at its end; what it needs is known then."""
        self.ends = {"w": End("is", self.moved() if self._seen_after() else self.advanced(self.outer.owner, "w"))}
        for m in self.outer.of_tensors:
            due = self.outer.is_due(m, self.due)
            if due:
                self.ends[self.old(m.id)] = End("is", self.updated(m))
            for flow in self.outer.gathered(m):
                end = End("zero") if due else End("plus", self.value(flow.args[0]).text)
                self.ends[self.old(self.outer.sum_of(m.id))] = end

    def _seen_after(self) -> bool:
        """Does a learner that is due learn from the new weights?"""
        due = [m for m in self.outer.of_tensors if self.outer.is_due(m, self.due) or self.outer.gathered(m)]
        needed = self.graph.upstream(*(id for m in due for _, id in self.graph.needs_of(m)))
        return any(f.op == "weights" and f.attr("state") == "after" for f in map(self.graph.flows.__getitem__, needed))

    def function(self, name: str, states: tuple[str, ...], in_place: bool) -> str:
        arguments = [*self.given, *map(self.name, states), *map(self.name, self.numbers)]
        if in_place:
            head = self.head(name, arguments, "None", "One application of the rule to a tensor, in place.")
            return "\n".join([*head, *self.lines, *(f"    {end.in_place(key)}" for key, end in self.ends.items())])
        head = self.head(name, arguments, "tuple[Tensor, ...]", "One application of the rule to a tensor: the new one, and its new states.")
        made = [self.ends[key].value(key) if key in self.ends else key for key in ("w", *map(self.name, states))]
        return "\n".join([*head, *self.lines, f"    return {', '.join(made)},"])

    def value(self, id: str) -> Code:
        if id not in self.outer.differing and not self.constant(id) and id not in self.variables:
            self.variables.add(id)
            self.numbers.append(id)
        return super().value(id)


class _Numbers(_Writer):
    """What is the same for all tensors."""

    def function(self, name: str, numbers: list[str], sums: tuple[Flow, ...]) -> str:
        self.variables.update(flow.id for flow in sums)
        known = [self.name(m.id) for m in self.outer.shared]
        arguments = ["age", *map(self.name, self.params), *known, *(self.name(flow.id) for flow in sums)]
        results = [self.value(id).text for id in numbers]
        states = [self.updated(m) for m in self.outer.shared]
        head = self.head(name, arguments, "tuple[Tensor, ...]", "Numbers that are the same for all tensors; `age` counts updates.")
        return "\n".join([*head, *self.lines, f"    return ({', '.join([*results, *states])},)"])


class _Totals(_Writer):
    """A tensor's part of what is summed over all of them."""

    def write(self, sums: tuple[Flow, ...]) -> None:
        """The lines of the function; what it needs is known then."""
        results = [f"{self.value(flow.args[0]).at(9)}.sum()" for flow in sums]
        self.lines.append(f"    return ({', '.join(results)},)")

    def function(self, name: str, states: tuple[str, ...]) -> str:
        arguments = [*self.given, *map(self.name, states), "age", *map(self.name, self.params)]
        return "\n".join(
            [*self.head(name, arguments, "tuple[Tensor, ...]", "A tensor's part of what is summed over all tensors."), *self.lines]
        )
