"""The typed spec: what a YAML file says, with templates merged, expressions parsed, and a span on every part.

Nothing here is resolved: names are still names. `nlc.graph.build` gives them their meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nlc.diagnostics import Span
from nlc.language.expression import Call, Expr, Name


@dataclass(frozen=True)
class Dim:
    """A named size: a number, or an expression of other dims (`dims: {S: O}`)."""

    name: str
    value: Expr
    span: Span


@dataclass(frozen=True)
class Param:
    """A number that callers may replace, a precision (a name of `schema.DTYPES`), or a tensor: a list of axes (stores)."""

    name: str
    value: Expr
    span: Span


@dataclass(frozen=True)
class Input:
    """One row a token. `kind` is `tensor`, `index` (an integer below `size`), or what the host of a rule or objective binds:
    `gradient`, `weights`, `input`, `error`, `pred`, `value` or `key`.

    `axes` are the names of the axes, a size where the file has a number; None where the host decides (`inputs: {g: gradient}`).
    """

    name: str
    kind: str
    axes: tuple[str, ...] | None
    size: Expr | None
    span: Span


@dataclass(frozen=True)
class Use:
    """`uses: {block: blocks/gated_delta}`: a name for another file, already loaded."""

    name: str
    target: str
    spec: Spec
    span: Span


@dataclass(frozen=True)
class Flow:
    name: str
    value: Expr
    span: Span


@dataclass(frozen=True)
class Period:
    """`every: 16 tokens`. `count` is an expression of dims and params; `clock` is `token`, `step`, `sequence` or `update`."""

    count: Expr
    clock: str
    span: Span


@dataclass(frozen=True)
class Store:
    """Tensors and a function. Either a call of a store file (`{matrix: [K, V]}`), or inline `params` and `call`."""

    use: Call | None
    tensors: tuple[tuple[str, tuple[Expr, ...], Span], ...]
    call: Expr | None
    span: Span


@dataclass(frozen=True)
class Write:
    """One entry of `learn`. A key that is absent is None: the default is applied, and reported, by the graph builder."""

    key: Expr | None
    value: Expr | None
    minimize: Expr | None
    fold: Expr | dict[str, str] | None
    at: Expr | None
    keep: Expr | dict[str, Expr] | None
    rate: Expr | None
    rule: Call | dict[str, Call] | None
    span: Span
    spans: dict[str, Span] = field(default_factory=dict, compare=False)
    """The place of each key that is written."""
    solve: str | None = None
    over: Period | None = None
    """The context of an exact solve; the clock `all` with count 0 stands for `all`."""
    weight: Expr | None = None
    times: Expr | None = None


@dataclass(frozen=True)
class Reset:
    """`reset: {every: 512 tokens, to: init}`: when a learner begins anew, one of `every` and `when`, and with what."""

    every: Period | None
    when: Expr | None
    to: Expr | None
    span: Span
    spans: dict[str, Span] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Sequences:
    """`sequence: {starts: new(doc)}`: at which tokens of a row a sequence starts."""

    starts: Expr
    span: Span


@dataclass(frozen=True)
class Learner:
    name: str
    store: Store | None
    owns: Expr | None
    per: tuple[Expr, ...]
    init: Expr | dict[str, Expr] | None
    learn: tuple[Write, ...]
    read: str | None
    scope: str | None
    span: Span
    spans: dict[str, Span] = field(default_factory=dict, compare=False)
    """The place of each key that is written, of a template's key where it came from one."""
    view: Expr | None = None
    """A function of a tensor."""
    reset: Reset | None = None
    backprop: str | Period | None = None
    """A word, or the tokens between two cuts."""

    @property
    def learns_from_loss(self) -> bool:
        """Has it a store of its own, and is the loss what it minimises?"""
        first = self.learn[0].minimize if self.learn else None
        return self.store is not None and isinstance(first, Name) and first.name == "loss"


@dataclass(frozen=True)
class Level:
    name: str
    every: Period | None
    learners: tuple[Learner, ...]
    span: Span
    remainder: str = "carry"
    spans: dict[str, Span] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Preset:
    """Values for dims and params that go together."""

    name: str
    values: tuple[tuple[str, Expr], ...]
    span: Span


@dataclass(frozen=True)
class Spec:
    """One file. `sources` maps every file that was read for it to its text, for messages."""

    path: str
    name: str
    doc: str
    dims: tuple[Dim, ...]
    params: tuple[Param, ...]
    inputs: tuple[Input, ...]
    uses: tuple[Use, ...]
    flows: tuple[Flow, ...]
    levels: tuple[Level, ...]
    outputs: tuple[Flow, ...]
    loss: Expr | None
    span: Span
    spans: dict[str, Span] = field(default_factory=dict, compare=False)
    sources: dict[str, str] = field(default_factory=dict, compare=False, repr=False)
    sequence: Sequences | None = None
    require: tuple[Expr, ...] = ()
    """What must hold of dims and params."""
    presets: tuple[Preset, ...] = ()

    @property
    def is_function(self) -> bool:
        """Is it an expression of its inputs, of any axes, that is written out where it is called?"""
        return bool(self.inputs) and all(item.kind == "value" and item.axes is None for item in self.inputs)

    @property
    def learners(self) -> tuple[Learner, ...]:
        return tuple(learner for level in self.levels for learner in level.learners)
