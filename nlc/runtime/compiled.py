"""What `nlc.compile` returns: a module that checks what it is given and knows the spec it came from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nlc.diagnostics import DataError, Diagnostic, Span, UsageError
from nlc.graph.ir import Flow, LevelGraph
from nlc.graph.order import DerivedLevel, levels
from nlc.graph.segments import carried, has_ends
from nlc.graph.sequences import documents
from nlc.graph.state import StateTensor
from nlc.passmanager import Stage
from nlc.program.program import Program
from nlc.runtime import codes

if TYPE_CHECKING:
    from nlc.runtime.served import Served
    from nlc.runtime.session import Session

Tensors = dict[str, Tensor]


class CompiledSpec(nn.Module):
    """Base of all compiled specs. Parameters are named by their path in the spec (`h.3.q.linear.W`).

    `graph` is the level graph after all passes, `stages` the passes that ran, `program` the loop nest, `source` the
    generated module (empty for the reference backend).
    """

    graph: LevelGraph
    program: Program | None
    stages: tuple[Stage, ...]
    source: str
    backend: str

    if TYPE_CHECKING:  # what the generated class, or the reference, brings

        def initial_state(self, batch: int, like: Tensors | None = None) -> Tensors:
            """The state of a new stream of `batch` rows."""

        def forward(self, inputs: Tensors, state: Tensors | None = None, frozen: Collection[str] = ()) -> tuple[Tensors, Tensors]:
            """Inputs [B, T, *axes] -> outputs [B, T, *axes], the new state."""

        def step(self, inputs: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
            """One token: inputs [B, *axes] -> outputs [B, *axes], the new state."""

        def loss(self, inputs: Tensors, state: Tensors | None = None, carry: bool = True) -> tuple[Tensor, Tensors, Tensors]:
            """The folded loss, the outputs and the new state; only of specs with a `loss`."""

        def end(self, state: Tensors, frozen: Collection[str] = ()) -> Tensors:
            """The state of the next sequence."""

        def initial_optimizer(self) -> Tensors:
            """The states of the outer levels before the first step."""

        def train_step(self, inputs: Tensors, optimizer: Tensors | None = None) -> tuple[Tensor, Tensors]:
            """One step of the outer levels; parameters and `optimizer` are updated in place."""

    @property
    def levels(self) -> tuple[DerivedLevel, ...]:
        """The levels, highest frequency first."""
        return levels(self.graph)

    @cached_property
    def served(self) -> Served:
        """What sessions must know of the spec."""
        from nlc.runtime.served import served

        return served(self.graph)

    def session(self, state: Tensors | None = None, batch: int = 1) -> Session:
        """A stream that is learned from while it is served, from a state (of any number of rows) or anew with `batch` rows."""
        from nlc.runtime.session import begun

        return begun(self, state, batch)

    def check_inputs(self, inputs: Mapping[str, Tensor], leading: tuple[str, ...] = ("B", "T")) -> None:
        """Raises DataError (NLC701), one diagnostic for each tensor that does not fit."""
        problems: list[Diagnostic] = []
        sizes: tuple[int, ...] | None = None
        for name in self.graph.inputs:
            flow = self.graph.flows[name]
            axes = tuple(axis.size for axis in flow.axes)
            wanted = f"[{', '.join([*leading, *map(str, flow.axes)])}]"
            x = inputs.get(name)
            if x is None:
                problems.append(self._missing(flow, wanted, ", ".join(inputs) or "nothing"))
                continue
            if tuple(x.shape[len(leading) :]) != axes or x.dim() != len(leading) + len(axes):
                problems.append(codes.BadInput(f"the input `{name}` has shape {list(x.shape)}; {wanted} is needed", flow.span))
                continue
            if sizes is not None and tuple(x.shape[: len(leading)]) != sizes:
                given = f"{' x '.join(leading)} = {list(x.shape[: len(leading)])}"
                text = f"the input `{name}` has {given}; the inputs before it have {list(sizes)}"
                problems.append(codes.BadInput(text, flow.span))
            sizes = sizes or tuple(x.shape[: len(leading)])
            problems += _dtype_problem(name, x, flow.dtype, flow.span) or _range_problem(name, x, flow)
        known = {*self.graph.inputs, "targets"}
        problems += [codes.BadInput(f"the spec has no input `{name}`", self.graph.span) for name in inputs if name not in known]
        if sizes is not None and 0 in sizes:
            problems.append(codes.BadInput(f"{' x '.join(leading)} is {list(sizes)}; no axis may be empty", self.graph.span))
        if problems:
            raise DataError(problems, dict(self.graph.sources))

    def _missing(self, flow: Flow, wanted: str, given: str) -> Diagnostic:
        """An input that is not given; where only the objective of levels asks for it, as where labels are missing, it says so."""
        text, graph, levels = f"the input `{flow.id}` {wanted} is missing", self.graph, self.served.levels
        outputs = graph.upstream(*(id for _, id in graph.outputs))
        if not levels or graph.loss is None or flow.id in outputs or flow.id not in graph.upstream(graph.loss):
            return codes.BadInput(text, flow.span, f"given: {given}")
        names, verb = " and ".join(f"`{id}`" for id in levels), "learns" if len(levels) == 1 else "learn"
        text = f"{text}: {names} {verb} from the loss while tokens come, and it is an operand of that objective"
        note = ("the objective", graph.flows[graph.loss].span)
        return codes.BadInput(text, flow.span, f"given: {given}; an objective of `next({graph.inputs[0]})` needs no labels", (note,))

    def check_state(self, state: Mapping[str, Tensor], batch: int) -> None:
        """Raises DataError (NLC702) if the state is not one of `batch` rows of this spec."""
        problems: list[Diagnostic] = []
        items = {item.key: item for item in carried(self.graph)}
        for key, item in items.items():
            span = self.graph.learners[item.learner].span if item.learner else self.graph.span
            shape = (
                []
                if item.kind == "position"
                else [axis.size for axis in item.axes]
                if item.shared
                else [batch, *(axis.size for axis in item.axes)]
            )
            if key not in state:
                problems.append(codes.BadState(f"the state has no `{key}` {shape}", span, "start from `initial_state(batch)`"))
            elif item.grows and state[key].dim() == len(shape):
                rest = [*state[key].shape[:1], *state[key].shape[2:]]
                if rest != [*shape[:1], *shape[2:]]:
                    wanted = f"[{', '.join(map(str, [shape[0], 'samples', *shape[2:]]))}]"
                    problems.append(codes.BadState(f"the state `{key}` has shape {list(state[key].shape)}; {wanted} is needed", span))
            elif list(state[key].shape) != shape:
                problems.append(codes.BadState(f"the state `{key}` has shape {list(state[key].shape)}; {shape} is needed", span))
        problems += [
            codes.BadState(f"the spec has no state `{key}`", self.graph.span, f"it has: {', '.join(items)}")
            for key in state
            if key not in items
        ]
        if problems:
            raise DataError(problems, dict(self.graph.sources))


def rows_of(items: Mapping[str, StateTensor], state: Mapping[str, Tensor]) -> int:
    """The rows of a state; one where it has none."""
    rows = (x.shape[0] for key, x in state.items() if key in items and not items[key].shared and items[key].kind != "position" and x.dim())
    return next(rows, 1)


def _range_problem(name: str, x: Tensor, flow: Flow) -> list[Diagnostic]:
    """An index outside its vocabulary; not asked of tensors elsewhere, where the answer would stop the device."""
    if flow.dtype != "index" or x.device.type != "cpu" or not x.numel():
        return []
    low, high, size = *(int(y) for y in x.aminmax()), flow.attr("size")
    if low >= 0 and high < size:
        return []
    return [codes.BadInput(f"the input `{name}` has the index {low if low < 0 else high}; its indices are 0 to {size - 1}", flow.span)]


def _order_problem(name: str, x: Tensor, span: Span) -> list[Diagnostic]:
    """x [B, 1 + T], the last number before the call first."""
    falls = (x[:, 1:] < x[:, :-1]).nonzero()
    if not len(falls):
        return []
    row, t = (int(i) for i in falls[0])
    text = f"the input `{name}` falls from {int(x[row, t])} to {int(x[row, t + 1])} at token {t} of row {row}"
    return [codes.BadInput(text, span, "a new sequence has a larger number than the one before it")]


def _targets_problem(targets: Tensor, like: Tensor, span: Span) -> list[Diagnostic]:
    shape = list(like.shape[:2])
    if list(targets.shape) != shape:
        return [codes.BadInput(f"`targets` has shape {list(targets.shape)}; {shape} is needed", span)]
    return _dtype_problem("targets", targets, "index", span)


def _dtype_problem(name: str, x: Tensor, dtype: str, span: Span) -> list[Diagnostic]:
    if dtype == "index" and (x.dtype.is_floating_point or x.dtype == torch.bool):
        return [codes.BadInput(f"the input `{name}` is {x.dtype}; an index is an integer tensor", span, "`.long()` makes one")]
    if dtype == "float" and not x.dtype.is_floating_point:
        return [codes.BadInput(f"the input `{name}` is {x.dtype}; floating point is needed", span, "`.float()` makes one")]
    return []


def _signature(method: str, inputs: Tensors, state: Tensors | None) -> object | None:
    """What the checks of a call look at, but for the values of indices; None where something is no tensor."""
    both = [*inputs.items(), *(state.items() if state is not None else [("", None)])]
    parts = [(name, x.shape, x.dtype) if isinstance(x, Tensor) else name if x is None and not name else None for name, x in both]
    return None if None in parts else (method, *parts)


SIGNATURES = 64


class Checked(CompiledSpec):
    """Wraps the methods of a generated (or reference) class with checks of their arguments.

    With `state` absent a new stream starts. `targets` among the inputs are used by `loss` and `train_step` only.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._accepted: set[object] = set()

    def forward(self, inputs: Tensors, state: Tensors | None = None, frozen: Collection[str] = ()) -> tuple[Tensors, Tensors]:
        """outputs, state = compiled(inputs, state): inputs and outputs [B, T, *axes], state a flat dict.

        frozen: keys of the state that updates from the loss leave as they are; `Session.freeze` names those of a level.
        """
        if not torch.compiler.is_compiling():
            self._check(inputs, state)
            self._check_frozen(frozen)
        return super().forward(inputs, state, frozen) if frozen else super().forward(inputs, state)

    def end(self, state: Tensors, frozen: Collection[str] = ()) -> Tensors:
        """state = compiled.end(state): the sequence is over; the state of the next one.

        Memories, and levels of scope `sequence`, begin anew. Levels of scope `stream` and `shared` go on, and `remainder` says whether they
        learn from the period that is open. Raises DataError (NLC755) for one that carries it on. frozen: as in a call.
        """
        rows = rows_of(self.served.items, state)
        self.check_state(state, rows)
        self._check_frozen(frozen)
        problems: list[Diagnostic] = []
        for id, level in self.served.levels.items():
            if level.endless:
                text = f"`{id}` carries an open period on, so its stream has no end"
                problems.append(codes.EndlessLevel(text, self.graph.learners[id].span, "`remainder: flush` or `drop` beside its `every`"))
        if problems:
            raise DataError(problems, dict(self.graph.sources))
        return super().end(state, frozen) if has_ends(self.graph) else self.initial_state(rows, state)

    def _check_frozen(self, frozen: Collection[str]) -> None:
        """Raises DataError (NLC702) for what no update from the loss would change."""
        held = {key for level in self.served.levels.values() for key in level.keys} if frozen else set()
        problems: list[Diagnostic] = [
            codes.BadState(f"`{key}` is no state of a level that learns from the loss while tokens come", self.graph.span)
            for key in frozen
            if key not in held
        ]
        if problems:
            raise DataError(problems, dict(self.graph.sources))

    def step(self, inputs: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        """One token: inputs and outputs [B, *axes]."""
        signature = _signature("step", inputs, state)
        if not self._is_known(signature, inputs):
            self.check_inputs(inputs, ("B",))
            self.check_state(state, next(iter(inputs.values())).shape[0])
            self._accept(signature)
        self._check_order(inputs, state)
        return super().step(inputs, state)

    def _is_known(self, signature: object | None, inputs: Tensors) -> bool:
        """Were such tensors accepted before, and does nothing depend on their values? The checks of a step cost more than a small step."""
        return signature is not None and signature in self._accepted and all(x.dtype.is_floating_point for x in inputs.values())

    def _accept(self, signature: object) -> None:
        """Names, shapes and dtypes that need no second look."""
        if len(self._accepted) >= SIGNATURES:
            self._accepted.clear()
        self._accepted.add(signature)

    def loss(self, inputs: Tensors, state: Tensors | None = None, carry: bool = True) -> tuple[Tensor, Tensors, Tensors]:
        """loss, outputs, state = compiled.loss(inputs, state): differentiable; `targets` [B, T] may be among the inputs.

        carry: where the new state is not wanted, as in most training, False spares it; it is incomplete then.
        """
        if self.graph.loss is None:
            raise UsageError(f"the spec `{self.graph.name}` has no loss")
        self._check(inputs, state)
        self._check_next(inputs)
        return super().loss(inputs, state, carry)

    def train_step(self, inputs: Tensors, optimizer: Tensors | None = None) -> tuple[Tensor, Tensors]:
        """loss, optimizer = compiled.train_step(inputs, optimizer): one update of the weights, in place."""
        if not any(learner.owns for learner in self.graph.learners.values()):
            raise UsageError(f"the spec `{self.graph.name}` has no learner that owns weights, so it cannot train")
        if not any(True for _ in self.parameters()):
            raise UsageError(f"the spec `{self.graph.name}` has no weights, so it cannot train")
        self._check(inputs, None)
        self._check_next(inputs)
        return super().train_step(inputs, optimizer)

    def _check_next(self, inputs: Tensors) -> None:
        """What the loss compares with exists, and `targets` can mean one thing only."""
        asked = {flow.args[0]: flow.span for flow in self.graph.flows.values() if flow.op == "next"}
        if not asked:
            return
        problem = None
        span = next(iter(asked.values()))
        if "targets" in inputs and len(asked) > 1:
            names = " and ".join(f"`{name}`" for name in asked)
            text = f"`targets` are the next values of one input; the loss asks for those of {names}"
            problem = codes.BadInput(text, span, "leave them out")
        elif "targets" in inputs:
            size = self.graph.flows[next(iter(asked))].attr("size")
            targets = inputs["targets"]
            if targets.device.type == "cpu" and int(targets.max()) >= size:
                problem = codes.BadInput(f"`targets` has the index {int(targets.max())}; its indices are below {size}", span)
        elif inputs[next(iter(asked))].shape[1] == 1:
            problem = codes.BadInput("a row of one token has no next token", span, "give `targets` [B, T], or longer rows")
        if problem is not None:
            raise DataError([problem], dict(self.graph.sources))

    def _check(self, inputs: Tensors, state: Tensors | None) -> None:
        signature = _signature("forward", inputs, state)
        if self._is_known(signature, inputs):
            return
        self.check_inputs(inputs)
        extra = inputs.keys() - set(self.graph.inputs)
        problems = _targets_problem(inputs["targets"], inputs[self.graph.inputs[0]], self.graph.span) if "targets" in extra else []
        if problems:
            raise DataError(problems, dict(self.graph.sources))
        if state is not None:
            self.check_state(state, next(iter(inputs.values())).shape[0])
        self._accept(signature)
        self._check_order(inputs, state)

    def _check_order(self, inputs: Tensors, state: Tensors | None) -> None:
        """The numbers of sequences do not decrease along a row; not asked of tensors elsewhere, where the answer would stop the device.

        Inputs [B, T], or [B] of one token.
        """
        problems: list[Diagnostic] = []
        for name, last in documents(self.graph).items():
            x = inputs[name] if inputs[name].dim() == 2 else inputs[name].unsqueeze(1)
            if x.device.type == "cpu":
                before = x[:, :1] if state is None else state[last].to(x.device, x.dtype).unsqueeze(1)
                problems += _order_problem(name, torch.cat([before, x], 1), self.graph.flows[name].span)
        if problems:
            raise DataError(problems, dict(self.graph.sources))
