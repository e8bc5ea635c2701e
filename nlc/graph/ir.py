"""The level graph: flows (what is computed every tick) and learners (what remembers), joined by typed edges.

Everything is frozen. A pass makes a new graph with `with_`; nodes keep the span they came from. Ids are readable and
stable: `q` is the flow the user named, `q:silu` a part of its expression, `q.linear` a learner the expression made,
`h.3.S` a learner of the fourth copy of a repeated block, `h.3.S.momentum` a learner of its rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from nlc.diagnostics import NOWHERE, Span
from nlc.language.expression import Call, Expr, Name
from nlc.language.spec import Spec


@dataclass(frozen=True)
class Axis:
    """A named axis. Batch and time are implied and never among the axes."""

    name: str
    size: int

    def __str__(self) -> str:
        return self.name if self.size < 0 or self.name == str(self.size) else f"{self.name}={self.size}"


Axes = tuple[Axis, ...]
STEPS = "inner step"
"""The name of the axis of `times: n`, n equal samples of one token; no name of a spec."""
Attribute = str | int | float | bool | tuple[Any, ...] | None

ANY = Axis("*", -1)
"""Stands for the axes of whatever tensor a rule is applied to."""


def size_of(axes: Axes) -> int:
    """The number of elements of a tensor with these axes."""
    total = 1
    for axis in axes:
        total *= axis.size
    return total


def show_axes(axes: Axes) -> str:
    return f"[{', '.join(map(str, axes))}]"


@dataclass(frozen=True)
class Flow:
    """One value a tick. `op` is a key of `nlc.graph.ops.OPS`; `args` are ids of flows; `scope` is the block copy it is in.

    A flow whose value belongs to the update of a learner (a gradient, a step) has that learner as `host`; its axes are
    those of the learner's tensors, or `ANY`.
    """

    id: str
    op: str
    args: tuple[str, ...] = ()
    attrs: Mapping[str, Attribute] = field(default_factory=dict)
    axes: Axes = ()
    dtype: str = "float"
    scope: str = ""
    host: str | None = None
    span: Span = NOWHERE

    def attr(self, name: str) -> Any:
        return self.attrs.get(name)

    def without(self, axis: Axis) -> Flow:
        """The same flow for one entry of an axis."""
        return replace(self, axes=tuple(a for a in self.axes if a != axis))


@dataclass(frozen=True)
class StoreTensor:
    name: str
    axes: Axes


@dataclass(frozen=True)
class Store:
    """The tensors of a learner and how a query reads them.

    `form` is `map` (z @ W, key axes first), `value` (W itself), `table` (row of an index), `kernel` (taps of a
    convolution), `any` (the tensors of whatever the learner owns or is like) or `tensor` (one tensor of a function that is
    written out in flows: `in_axes` are those that its first product contracts). `transposed`: that product is W @ z, the key
    axis comes last.
    """

    tensors: tuple[StoreTensor, ...]
    form: str
    in_axes: Axes = ()
    out_axes: Axes = ()
    transposed: bool = False


@dataclass(frozen=True)
class Init:
    """The state at a reset. `learned`: it is a parameter, drawn from `distribution`; else it is that constant itself.

    `state`: it is what the learner `of` holds then.
    """

    distribution: str
    args: tuple[float, ...] = ()
    learned: bool = False
    of: str | None = None

    @property
    def as_weights(self) -> bool:
        """Of a learner like weights: it begins as they are."""
        return self == AS_WEIGHTS

    @property
    def number(self) -> float:
        """The one number that a constant state is filled with."""
        return {"zeros": 0.0, "ones": 1.0}.get(self.distribution, self.args[0] if self.args else 0.0)

    def __str__(self) -> str:
        if self.of is not None:
            return f"{self.of}()"
        inner = f"{self.distribution}({', '.join(map(repr, self.args))})" if self.args else self.distribution
        return f"learned({inner})" if self.learned else inner


AS_WEIGHTS = Init("weights")


def pred_id(learner: str, number: int) -> str:
    """The leaf of a tensor that the gradient of a write is taken of."""
    return f"{learner}:pred{f'.{number + 1}' if number else ''}"


@dataclass(frozen=True)
class Clock:
    """`unit` is `token`, `step` or `update` (one application of the host's rule)."""

    unit: str
    period: int

    def __str__(self) -> str:
        return f"{self.period} {self.unit}{'s' if self.period > 1 else ''}"


@dataclass(frozen=True)
class Write:
    """One term of what a learner minimises. All fields are ids of flows.

    `loss` is a flow over the leaf `pred` of this write; `pred` is the id of that leaf. `rate` scales the gradient of this write where a
    learner has several.
    """

    key: str | None
    value: str | None
    loss: str
    pred: str | None
    span: Span = NOWHERE
    rate: str | None = None


@dataclass(frozen=True)
class Solve:
    """An exact solve over the context, when asked. `key` to `sample` are ids of flows.

    `key` and `value` are what a token adds to the context; `weight` is a flow of the leaves `query` and `sample`. `over` is the length
    of the context in tokens, 0 for all of it. With `axis` they hold one sample for each of its entries; with `once` they are the same at
    every token and counted once. `also`: further samples, of the other writes. `every`: the context begins anew every so many tokens,
    0 for never; it stands on the first.
    """

    key: str
    value: str
    weight: str
    query: str
    sample: str
    over: int = 0
    axis: Axis | None = None
    once: bool = False
    also: tuple[Solve, ...] = ()
    every: int = 0

    @property
    def contexts(self) -> tuple[Solve, ...]:
        """The samples of each write."""
        return (self, *self.also)

    @property
    def flows(self) -> tuple[str, ...]:
        """The keys and values of a token, write by write: what a query stands beside."""
        return tuple(id for each in self.contexts for id in (each.key, each.value))


@dataclass(frozen=True)
class Rule:
    """How a gradient becomes a step.

    Before expansion `call` and `spec` name the rule and `args` bind its params to flows; after it `step` and `keep`
    are flows hosted by the learner, and `gradient` is the leaf they start from. A plain `rate` needs no expansion.
    """

    call: Call | None = None
    spec: Spec | None = None
    args: tuple[tuple[str, str], ...] = ()
    gradient: str | None = None
    step: str | None = None
    keep: str | None = None

    @property
    def expanded(self) -> bool:
        return self.step is not None


@dataclass(frozen=True)
class Backprop:
    """How much of the outer gradient crosses the updates of a learner (docs/semantics.md, "Outer gradient").

    `kind` is `unrolled`, `stop`, `first_order` or `truncated`; `tokens` is the distance between two cuts.
    """

    kind: str = "unrolled"
    tokens: int = 0

    @property
    def stops(self) -> bool:
        """Is every update a constant?"""
        return self.kind in ("stop", "first_order")

    def __str__(self) -> str:
        return f"{self.kind} {self.tokens} tokens" if self.tokens else self.kind


@dataclass(frozen=True)
class Restart:
    """Weights of an outer level begin anew every so many steps, as what the learner `state` holds of them."""

    every: int
    state: str


@dataclass(frozen=True)
class Learner:
    """An associative memory: tensors, a context, an objective, a rule, retention, a clock, an initial state, a recall."""

    id: str
    store: Store
    per: Axes = ()
    clock: Clock | None = None
    level: str = ""
    init: Init = Init("zeros")
    read: str = "after"
    sharing: str = "sequence"
    writes: tuple[Write, ...] = ()
    at: str = "start"
    fold: Mapping[str, str] = field(default_factory=dict)
    samples: Axis | None = None
    """The axis of the samples that one token holds, written one after the other."""
    keep: str | None = None
    rule: Rule = Rule()
    solve: Solve | None = None
    """For a learner that stores its context only."""
    selector: Expr | None = None
    """For a learner that minimises the loss: the tensors it moves, those of its own store (`OWN`) or some declared elsewhere. `owns` are
    their ids."""
    owns: tuple[str, ...] = ()
    owner: str | None = None
    """The learner that moves this tensor of its own store, by the gradient of the loss, while tokens come."""
    group: str | None = None
    """The declared learner that it is one tensor of, `S` for `S.W1`; for a learner of the rule of `S.W1`, what it is without the tensor."""
    host: str | None = None
    reset: str | None = None
    """A number a token; where it is not 0 the learner and those of its rule begin anew."""
    first: str | None = None
    """The flow that it begins as, where it begins anew; else it begins as `init` says."""
    remainder: str = "carry"
    """What becomes of an open period of a learner of the loss where a sequence ends: `carry`, `flush` or `drop`."""
    restart: Restart | None = None
    """For an outer level."""
    joins: tuple[str, ...] = ()
    """The learners whose tensors it holds side by side, along the axis `per[0]`, while a call runs."""
    joined: str | None = None
    """The learner that holds its tensor, beside those of others. Calls are given and return it by itself."""
    like_weights: bool = False
    """It holds a tensor for each weight of an outer level, its host, as an average of them does; no part of the rule."""
    scope: str = ""
    span: Span = NOWHERE
    defaults: tuple[tuple[str, str], ...] = ()
    backprop: Backprop = Backprop()
    linear: Any = None
    """The linear class of the learner (`nlc.graph.linear.LinearForm`), found by the pass `classify`."""
    execution: Execution | None = None
    """How it is run, chosen by the pass `choose-form`."""

    @property
    def is_parameter(self) -> bool:
        """True for a tensor that only the outer levels write."""
        return not self.writes and self.init.learned and self.selector is None and self.owner is None and self.joined is None

    @property
    def is_state(self) -> bool:
        """True for a tensor that changes while tokens come."""
        return self.owner is not None or (bool(self.writes) and self.selector is None)

    @property
    def folds(self) -> str | None:
        """`sum`, `mean` or `last`: its rule is applied once, at the last token of a period; None: at every token.

        A slow learner in the rule of a memory is one of these, its clock counts tokens.
        """
        inside = self.clock is not None and self.clock.unit == "token"
        word = self.fold.get("token") or (self.folds_updates if inside else None)
        return word if word != "each" and self.selector is None else None

    @property
    def folds_updates(self) -> str | None:
        """`sum`, `mean` or `last`: a slow learner of a rule, updated at the last of several updates of its host.

        Its `keep` acts once an update, that of another memory (`folds`) at every token of a period.
        """
        return self.fold.get("update")

    @property
    def adds_up(self) -> str | None:
        """`sum` or `mean`, where the gradients of a period are added up."""
        word = self.folds or self.folds_updates
        return word if word in ("sum", "mean") else None

    @property
    def accumulates(self) -> str | None:
        """`sum` or `mean`, of an outer level where the gradients of several steps make one update."""
        word = self.fold.get("step")
        return word if word in ("sum", "mean") else None

    @property
    def base(self) -> str:
        """Its id without the tensor: states of rules are called `S.momentum.W1`."""
        return self.group or self.id

    @property
    def axes(self) -> Axes:
        """The axes of its (first) tensor, copies first."""
        return self.per + self.store.tensors[0].axes

    @property
    def of_a_token(self) -> Axes:
        """The axis of the samples that one token holds, where there is one."""
        return (self.samples,) if self.samples is not None else ()

    @property
    def copies(self) -> Axes:
        """What counts the keys and values of a token: samples, then copies."""
        return (*self.of_a_token, *self.per)


OWN = Name("own", NOWHERE)
"""The selector of a learner of the loss that moves the tensors of its own store."""


def moves_tensors(learners: Mapping[str, Learner], id: str) -> bool:
    """Is it a learner of the loss, or one in the rule of such a learner? They see whole tensors, one after the other."""
    return learners[root_of(learners, id)].selector is not None


def root_of(learners: Mapping[str, Learner], id: str) -> str:
    """The learner at the end of the chain of hosts."""
    while (host := learners[id].host) is not None:
        id = host
    return id


@dataclass(frozen=True)
class Execution:
    """`form` is `recurrent` or `chunkwise`; `chunk` is a number of tokens; `decays` is `log` or `product`."""

    form: str
    chunk: int = 1
    decays: str = "product"
    legal: tuple[str, ...] = ()
    reason: str = ""
    iterate: bool = False
    """Systems of its states are solved by conjugate gradients, not token by token."""
    recompute: int = 0
    """Tokens of a segment that the backward pass runs anew, so that only the states between segments are kept; 0: all is kept."""


@dataclass(frozen=True)
class Bucket:
    """Learners due at the same ticks, none of which needs another's new state: they share one boundary and one sweep."""

    id: str
    clock: Clock
    learners: tuple[str, ...]


@dataclass(frozen=True)
class LevelGraph:
    """A spec with all names resolved. Flows are stored in an order in which they can be computed."""

    name: str
    file: str = ""
    doc: str = ""
    dims: tuple[tuple[str, int], ...] = ()
    flows: Mapping[str, Flow] = field(default_factory=dict)
    learners: Mapping[str, Learner] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    outputs: tuple[tuple[str, str], ...] = ()
    loss: str | None = None
    starts: str | None = None
    """A number a token, not 0 where a sequence starts inside a row."""
    rows: tuple[tuple[str, str], ...] = ()
    """For tensors whose rule reads its `input`: (the learner, the flow that it is multiplied with)."""
    functions: Mapping[str, LevelGraph] = field(default_factory=dict)
    buckets: tuple[Bucket, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    library: Any = field(default=None, compare=False, repr=False)
    span: Span = NOWHERE

    def with_(self, **changes: Any) -> LevelGraph:
        return replace(self, **changes)

    def with_learner(self, learner: Learner) -> LevelGraph:
        return replace(self, learners={**self.learners, learner.id: learner})

    @cached_property
    def readers(self) -> Mapping[str, tuple[str, ...]]:
        """For each flow, the flows that take it as an argument."""
        found: dict[str, list[str]] = {}
        for flow in self.flows.values():
            for arg in flow.args:
                found.setdefault(arg, []).append(flow.id)
        return {key: tuple(value) for key, value in found.items()}

    @cached_property
    def recalls(self) -> Mapping[str, tuple[Flow, ...]]:
        """For each learner, the flows that call it, or take its tensor into a function."""
        found: dict[str, list[Flow]] = {}
        for flow in self.flows.values():
            if flow.op in ("recall", "tensor"):
                found.setdefault(flow.attr("learner"), []).append(flow)
        return {key: tuple(value) for key, value in found.items()}

    def roots(self) -> Iterator[str]:
        """The flows whose value leaves the graph: outputs, the loss, where sequences start, what rules of weights are told."""
        yield from (flow for _, flow in self.outputs)
        if self.loss is not None:
            yield self.loss
        if self.starts is not None:
            yield self.starts
        yield from (flow for _, flow in self.rows)

    def needs_of(self, learner: Learner) -> Iterator[tuple[str, str]]:
        """(kind of edge, flow) for everything a learner's update reads."""
        for write in learner.writes:
            if write.key is not None:
                yield "key", write.key
            if write.value is not None:
                yield "value", write.value
            yield "objective", write.loss
            if write.rate is not None:
                yield "rate", write.rate
        if learner.solve is not None:
            for context in learner.solve.contexts:
                yield "key", context.key
                yield "value", context.value
                yield "weight", context.weight
        if learner.keep is not None:
            yield "keep", learner.keep
        if learner.reset is not None:
            yield "reset", learner.reset
        if learner.first is not None:
            yield "initial state", learner.first
        yield from learner.rule.args
        if learner.rule.step is not None:
            yield "step", learner.rule.step
        if learner.rule.keep is not None:
            yield "keep", learner.rule.keep

    def upstream(self, *flows: str) -> set[str]:
        """The flows from which these are computed within the tick, themselves included."""
        seen: set[str] = set()
        stack = list(flows)
        while stack:
            flow = stack.pop()
            if flow not in seen:
                seen.add(flow)
                stack.extend(self.flows[flow].args)
        return seen

    @property
    def parameters(self) -> tuple[Learner, ...]:
        """The learners that hold parameters, in the order of the graph; a learned initial state counts."""
        return tuple(learner for learner in self.learners.values() if learner.init.learned and not learner.joins)

    def parameter_name(self, learner: Learner) -> str:
        """`q.linear.W`; the learned initial state of a memory is `S.init`."""
        if learner.group is not None and learner.is_parameter:
            return f"{learner.group}.{learner.store.tensors[0].name}"
        return f"{learner.id}.{learner.store.tensors[0].name if learner.is_parameter else 'init'}"
