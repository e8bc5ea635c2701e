"""Operators that need more than their operands' values: they make learners (parameters), reduce axes, or call a block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nlc.graph import codes
from nlc.graph.builder import Context, Operator
from nlc.graph.constants import QUINTIC, ROTARY_BASE
from nlc.graph.inverse import solve
from nlc.graph.ir import Axes, Init, Learner, Store, StoreTensor, show_axes, size_of
from nlc.graph.ops import ShapeError, is_any, reduce_axes
from nlc.language.expression import Call, Expr, Name, to_text

if TYPE_CHECKING:
    from nlc.graph.builder import Builder


CONSTANT_ARGUMENTS = {"newton_schulz": 1, "inverse_root": 1}
"""Operators of rules whose arguments from this place on, and by name, are numbers known when compiling."""


def _parameter(b: Builder, context: Context, kind: str, store: Store, init: Init, expr: Call) -> str:
    """An anonymous learner of frequency 0 in context: a slow tensor, owned by the outer levels."""
    id = b.fresh(b.learners, f"{b.prefix}{context.owner}.{kind}")
    if context.in_store:
        b.fail(codes.NotAValue, f"`{kind}` makes a tensor of its own; the tensors of a store stand in its `params`", expr.span)
    if b.host is not None:
        b.fail(codes.NotCompiledYet, f"`{kind}` inside a rule is not compiled yet", expr.span)
    b.learners[id] = Learner(id, store, level="never", init=init, sharing="shared", span=expr.span)
    return id


def linear(b: Builder, expr: Call, context: Context, name: str | None) -> str:
    """`linear(x, [H, K])`: contracts all axes of x."""
    b.arguments(expr, "a flow", "the axes of the result")
    x = b.expr(expr.args[0], context)
    return _linear(b, x, b.axes(expr.args[1]), expr, context, name, "linear")


def unembed(b: Builder, expr: Call, context: Context, name: str | None) -> str:
    """`unembed(x, vocab)`: scores of the entries of a vocabulary. `table=e`: by the table of the flow e, an `embed`, not one of its own."""
    b.arguments(expr, "a flow", "the size of the vocabulary", options=("table",))
    x = b.expr(expr.args[0], context)
    table = dict(expr.kwargs).get("table")
    if table is not None:
        return _by_table(b, x, b.expr(table, context), expr, context, name)
    return _linear(b, x, b.axes(expr.args[1]), expr, context, name, "unembed")


def _by_table(b: Builder, x: str, embedded: str, expr: Call, context: Context, name: str | None) -> str:
    """The product of each row of the table of an `embed` and x."""
    embedding, table = b.flows[embedded], dict(expr.kwargs)["table"]
    if embedding.op != "embed":
        b.fail(codes.NotAValue, f"`{to_text(table)}` is no `embed`, so it has no table", table.span, "name the flow that is `embed(..)`")
    learner = b.learners[embedding.attr("learner")]
    rows, row = learner.store.in_axes, learner.store.out_axes
    if (b.axis(expr.args[1]),) != rows:
        note = (f"`{embedded}` is defined here", embedding.span)
        b.fail(codes.ShapeMismatch, f"the table has {rows[0]} rows, not {b.axis(expr.args[1])}", expr.args[1].span, None, [note])
    b.fits(x, row, expr.args[0].span, "the operand of `unembed`", row)
    if len(row) != 1:
        b.fail(
            codes.NotCompiledYet, "`unembed` by a table with several axes a row is not compiled yet", expr.span, "its rows have one axis"
        )
    tensor = b.node("tensor", [], expr.span, context, None, rows + row, "table", learner=learner.id, state="start")
    return b.node("contract", [tensor, x], expr.span, context, name, rows, copies=0)


def _linear(b: Builder, x: str, out: Axes, expr: Call, context: Context, name: str | None, kind: str) -> str:
    inner = b.flows[x].axes
    b.fits(x, inner, expr.args[0].span, f"the operand of `{kind}`")
    if not inner:
        b.fail(codes.ShapeMismatch, f"`{kind}` needs at least one axis to contract, `{x}` is one number", expr.span)
    store = Store((StoreTensor("W", inner + out),), "map", inner, out)
    learner = _parameter(b, context, kind, store, Init("normal", (size_of(inner) ** -0.5,), learned=True), expr)
    return b.node("recall", [x], expr.span, context, name, out, kind, learner=learner, state="start")


def conv(b: Builder, expr: Call, context: Context, name: str | None) -> str:
    """`conv(x, width)`: causal depthwise convolution over time; the last width - 1 rows are state."""
    b.arguments(expr, "a flow", "the number of taps")
    x = b.expr(expr.args[0], context)
    axes = b.flows[x].axes
    b.fits(x, axes, expr.args[0].span, "the operand of `conv`")
    taps = b.axis(expr.args[1])
    store = Store((StoreTensor("W", (taps, *axes)),), "kernel", axes, axes)
    bound = taps.size**-0.5
    learner = _parameter(b, context, "conv", store, Init("uniform", (-bound, bound), learned=True), expr)
    return b.node("conv", [x], expr.span, context, name, axes, learner=learner, width=taps.size)


def embed(b: Builder, expr: Call, context: Context, name: str | None) -> str:
    """`embed(tokens, vocab, d)`: the row of a table."""
    b.arguments(expr, "an index", "the size of the vocabulary", "the axes of a row")
    x = b.expr(expr.args[0], context)
    rows, out = b.axis(expr.args[1]), b.axes(expr.args[2])
    if b.flows[x].dtype != "index":
        b.fail(
            codes.WrongType,
            "`embed` needs an index",
            expr.args[0].span,
            "declare it as `inputs: {tokens: {index: vocab}}`",
            [(f"`{x}` is defined here", b.flows[x].span)],
        )
    store = Store((StoreTensor("W", (rows, *out)),), "table", (rows,), out)
    learner = _parameter(b, context, "embed", store, Init("normal", (0.02,), learned=True), expr)
    return b.node("embed", [x], expr.span, context, name, out, learner=learner)


def _norm(kind: str) -> Operator:
    def build(b: Builder, expr: Call, context: Context, name: str | None) -> str:
        """Normalise the last axis and multiply by a learned gain; in the `call` of a store without one. `eps` is added under the root."""
        b.arguments(expr, "a flow", options=("eps",))
        x = b.expr(expr.args[0], context)
        eps = _eps(b, expr)
        axes = b.flows[x].axes
        b.fits(x, axes, expr.args[0].span, f"the operand of `{kind}`")
        if not axes:
            b.fail(codes.ShapeMismatch, f"`{kind}` needs at least one axis, `{x}` is one number", expr.span)
        if context.in_store:
            return b.node(kind, [x], expr.span, context, name, axes, **eps)
        store = Store((StoreTensor("gain", axes[-1:]),), "value", (), axes[-1:])
        learner = _parameter(b, context, kind, store, Init("ones", learned=True), expr)
        return b.node(kind, [x], expr.span, context, name, axes, learner=learner, **eps)

    return build


def _eps(b: Builder, expr: Call) -> dict[str, Any]:
    """What a norm adds under its root, where the spec says it."""
    given = dict(expr.kwargs).get("eps")
    if given is None:
        return {}
    eps = float(b.number(given))
    if eps < 0:
        b.fail(codes.BadSize, f"`eps` is {eps}; it is at least 0", given.span)
    return {"eps": eps}


def rope(b: Builder, expr: Call, context: Context, name: str | None) -> str:
    """`rope(x, position, theta=10000)`: rotary position embedding of the last axis (Su et al. 2021, arXiv 2104.09864).

    The channels i and i + K/2 of the K, a plane, are turned by the angle position * theta^(-2 i / K); `position` is a number a token.
    """
    b.arguments(expr, "a flow", "a number a token", options=("theta",))
    x, place = b.all(context, *expr.args)
    theta = _theta(b, expr)
    axes = b.flows[x].axes
    b.fits(x, axes, expr.args[0].span, "the operand of `rope`")
    if not axes or axes[-1].size % 2:
        note = [(f"`{x}` has axes {show_axes(axes)}", b.flows[x].span)]
        help = "the last axis, such as the keys of a head, must have an even size"
        b.fail(codes.ShapeMismatch, "`rope` turns pairs of channels of the last axis", expr.args[0].span, help, note)
    b.fits(place, axes[:-1], expr.args[1].span, "the position of `rope`")
    return b.node("rope", [x, place], expr.span, context, name, axes, theta=theta)


def _theta(b: Builder, expr: Call) -> float:
    given = dict(expr.kwargs).get("theta")
    theta = ROTARY_BASE if given is None else float(b.number(given))
    if given is not None and theta <= 0:
        b.fail(codes.BadSize, f"`theta` is {theta}; it must be above 0", given.span)
    return theta


def _reduction(kind: str) -> Operator:
    def build(b: Builder, expr: Call, context: Context, name: str | None) -> str:
        """`sum(x)` over all axes (of one copy, inside a learner), or `sum(x, axis)`."""
        b.arguments(expr, "a flow", "an axis", optional=1)
        x = b.expr(expr.args[0], context)
        axis = b.axis(expr.args[1]).name if len(expr.args) > 1 else None
        if kind == "mean" and is_any(b.flows[x].axes):
            b.fail(codes.NotCompiledYet, "`mean` in a rule for tensors of any shape is not compiled yet", expr.span, "`sum` is")
        try:
            axes = reduce_axes(b.flows[x].axes, axis, context.kept)
        except ShapeError as error:
            b.fail(codes.ShapeMismatch, f"`{kind}`: {error}", expr.span, None, [(f"`{x}` is defined here", b.flows[x].span)])
        return b.node(kind, [x], expr.span, context, name, axes)

    return build


def next_(b: Builder, expr: Call, context: Context, name: str | None) -> str:
    """`next(tokens)`: the value of an input at the next token; the last token of a row has none."""
    b.arguments(expr, "an input")
    x = b.expr(expr.args[0], context)
    if b.flows[x].op != "input":
        b.fail(codes.NotCompiledYet, "`next` takes an input", expr.args[0].span)
    if b.flows[x].dtype != "index":
        b.fail(codes.NotCompiledYet, "`next` of numbers is not compiled yet", expr.args[0].span, "it takes an index, such as a token")
    return b.node("next", [x], expr.span, context, name, b.flows[x].axes)


def slice_(b: Builder, expr: Call, context: Context, name: str | None) -> str:
    """`slice(x, start, size)`: so many entries of the last axis, from the one at `start`, counted from 0."""
    b.arguments(expr, "a flow", "the first entry", "the number of entries")
    x, axes = _with_an_axis(b, expr, context)
    start, size = b.number(expr.args[1]), b.axis(expr.args[2])
    if not isinstance(start, int) or start < 0 or start + size.size > axes[-1].size:
        text = f"entries {start} to {start + size.size - 1} of the axis `{axes[-1].name}`, which has {axes[-1].size}, counted from 0"
        b.fail(codes.BadSize, f"`slice` takes {text}", expr.span, None, [(f"`{x}` is defined here", b.flows[x].span)])
    return b.node("slice", [x], expr.span, context, name, (*axes[:-1], size), start=start)


def reshape(b: Builder, expr: Call, context: Context, name: str | None) -> str:
    """`reshape(x, [X, Y])`: the same numbers with other axes, the last of them running fastest."""
    b.arguments(expr, "a flow", "the axes of the result")
    x, old = _with_an_axis(b, expr, context)
    copies = tuple(axis for axis in old if axis in context.kept) if context.in_store else ()
    axes = (*copies, *b.axes(expr.args[1]))
    if old[: len(copies)] != copies or size_of(axes) != size_of(old) or not axes:
        text = f"{show_axes(old)} are {size_of(old)} numbers, {show_axes(axes)} are {size_of(axes)}"
        b.fail(codes.ShapeMismatch, f"`reshape`: {text}", expr.span, None, [(f"`{x}` is defined here", b.flows[x].span)])
    return b.node("reshape", [x], expr.span, context, name, axes)


def _with_an_axis(b: Builder, expr: Call, context: Context) -> tuple[str, Axes]:
    """The first operand, numbers along at least one axis."""
    x = b.expr(expr.args[0], context)
    axes = b.flows[x].axes
    if b.host is not None:
        b.fail(codes.NotCompiledYet, f"`{expr.function}` inside a rule is not compiled yet", expr.span)
    b.fits(x, axes, expr.args[0].span, f"the operand of `{expr.function}`")
    if not axes:
        b.fail(codes.ShapeMismatch, f"`{expr.function}` needs at least one axis, `{x}` is one number", expr.span)
    return x, axes


def new(b: Builder, expr: Call, context: Context, name: str | None) -> str:
    """`new(doc)`: 1 where an index differs from that of the token before, and at the first token of a stream; else 0."""
    b.arguments(expr, "an index")
    x = b.expr(expr.args[0], context)
    if b.host is not None:
        b.fail(codes.NotCompiledYet, "`new` inside a rule is not compiled yet", expr.span)
    if b.flows[x].dtype != "index":
        help = "it takes an index: `inputs: {doc: {index: 1024}}`"
        b.fail(codes.NotCompiledYet, "`new` of numbers is not compiled yet", expr.args[0].span, help)
    return b.node("new", [x], expr.span, context, name, (), tail=f"{x}.last")


def age(b: Builder, expr: Call, context: Context, name: str | None) -> str:
    """`age(m)`: how many updates a learner has made, the one of this tick included. `age(self)`: those of the tensors that a rule moves."""
    host = b.host.id if b.host is not None else context.self_id if context.host == context.self_id else None
    if host is None:
        help = "`age(self)` stands in the rule of a learner with `owns`"
        b.fail(codes.NotCompiledYet, "`age` outside a rule is not compiled yet", expr.span, help)
    own = len(expr.args) == 1 and expr.args[0] == Name("self", expr.args[0].span)
    learner = host if own else _named_learner(b, expr)
    return b.node("age", [], expr.span, context, name, (), learner=learner)


def _named_learner(b: Builder, expr: Call) -> str:
    """The id of the learner of this spec that is the one argument of a call."""
    b.arguments(expr, "a learner")
    learner = expr.args[0]
    if not isinstance(learner, Name) or learner.name not in b.local_learners:
        b.fail(codes.NotAValue, f"`{expr.function}` takes the name of a learner", expr.span)
    return b.id_of(learner.name)


def cross_entropy(b: Builder, expr: Call, context: Context, name: str | None) -> str:
    """`cross_entropy(logits, target)`: negative log probability (nats) of the target index, one number a token."""
    b.arguments(expr, "scores", "an index")
    logits, target = b.expr(expr.args[0], context), b.expr(expr.args[1], context)
    if b.flows[target].dtype != "index":
        b.fail(codes.WrongType, "the target of `cross_entropy` must be an index", expr.args[1].span)
    if len(b.flows[logits].axes) != 1:
        note = (f"`{logits}` has axes {show_axes(b.flows[logits].axes)}", b.flows[logits].span)
        b.fail(codes.ShapeMismatch, "the scores of `cross_entropy` have one axis, the vocabulary", expr.args[0].span, None, [note])
    return b.node("cross_entropy", [logits, target], expr.span, context, name, ())


def total(b: Builder, expr: Call, context: Context, name: str | None) -> str:
    """`total(x)`: the sum over all elements of all tensors of the host."""
    b.arguments(expr, "a flow")
    if b.host is None:
        b.fail(codes.NotAValue, "`total` has a meaning only inside a rule", expr.span)
    if b.host.per or not b.moves_weights:
        b.fail(codes.NotCompiledYet, "`total` in the rule of a token memory is not compiled yet", expr.span)
    if b.over_weights:
        b.fail(codes.NotCompiledYet, "`total` of a learner over weights is not compiled yet", expr.span)
    return b.node("total", [b.expr(expr.args[0], context)], expr.span, context, name, ())


def newton_schulz(b: Builder, expr: Call, context: Context, name: str | None) -> str:
    """`newton_schulz(x, steps)`: near the orthogonal factor of the matrix on the last two axes, by a polynomial of odd degree 5.

    One step is X <- a X + (b A + c A^2) X with A = X X^T, from X = x / |x|. `a`, `b`, `c` default to those of Muon (Jordan et al. 2024).
    `dtype`, a precision: what the steps are computed in; by default that of x.
    """
    b.arguments(expr, "a matrix", "the number of steps", options=("a", "b", "c", "dtype"))
    steps = b.number(expr.args[1])
    if not isinstance(steps, int) or steps < 1:
        b.fail(codes.BadSize, f"the number of steps is {steps}; it must be a whole number of at least 1", expr.args[1].span)
    asked = dict(expr.kwargs)
    word = b.word(asked.pop("dtype")) if "dtype" in asked else "same"
    given = {key: float(b.number(value)) for key, value in asked.items()}
    coefficients = tuple(given.get(key, value) for key, value in zip("abc", QUINTIC, strict=True))
    x = b.expr(expr.args[0], context)
    dtype = None if word == "same" else word
    return b.node("newton_schulz", [x], expr.span, context, name, steps=steps, coefficients=coefficients, dtype=dtype)


def inverse_root(b: Builder, expr: Call, context: Context, name: str | None) -> str:
    """`inverse_root(A, p, eps)`: (A + eps I)^(-1/p) of a symmetric matrix whose eigenvalues are at least 0; smaller ones count as 0."""
    b.arguments(expr, "a symmetric matrix", "the root", "what is added to the eigenvalues")
    power, eps = (float(b.number(value)) for value in expr.args[1:])
    if power <= 0 or eps < 0:
        b.fail(codes.BadSize, f"the root is {power} and what is added {eps}; the first is above 0, the second at least 0", expr.span)
    return b.node("inverse_root", [b.expr(expr.args[0], context)], expr.span, context, name, power=power, eps=eps)


def _of_a_matrix(kind: str, doc: str) -> Operator:
    def build(b: Builder, expr: Call, context: Context, name: str | None) -> str:
        b.arguments(expr, "a matrix")
        return b.node(kind, [b.expr(expr.args[0], context)], expr.span, context, name)

    build.__doc__ = doc
    return build


def due(b: Builder, expr: Call, context: Context, name: str | None) -> str:
    """`due(m)`: 1 where the period of a learner of the rule ends, 0 at all other updates."""
    learner = _named_learner(b, expr)
    if not b.moves_weights:
        b.fail(codes.NotCompiledYet, "`due` outside the rule of weights is not compiled yet", expr.span)
    return b.node("due", [], expr.span, context, name, (), learner=learner)


def gram(b: Builder, expr: Call, context: Context, name: str | None) -> str:
    """`gram(x)`: x x^T on the input side of a matrix; a term of the `keep` that a rule outputs."""
    text = "`gram` outside the `keep` that a rule outputs is not compiled yet"
    b.fail(codes.NotCompiledYet, text, expr.span, "a rule has it, as `outputs: {keep: keep - rate * gram(x), ..}`")


def repeat(b: Builder, expr: Call, context: Context, name: str | None) -> str:
    """`repeat(block, n, x)`: n copies of a block in sequence, each with its own weights and states."""
    if len(expr.args) != 3:
        b.fail(codes.WrongArguments, "`repeat` takes a block, a number of copies and a flow", expr.span)
    block, count, x = expr.args
    if not isinstance(block, Name) or block.name not in b.uses:
        b.fail(codes.NotAValue, "the first argument of `repeat` is a name from `uses:`", block.span)
    times = b.axis(count).size
    return _apply(b, block.name, (x,), expr, context, name, times)


def apply(b: Builder, expr: Call, context: Context, name: str | None) -> str:
    """`block(x)`: a used spec called like a function."""
    return _apply(b, expr.function, expr.args, expr, context, name, None)


def _apply(b: Builder, use: str, args: tuple[Expr, ...], expr: Call, context: Context, name: str | None, times: int | None) -> str:
    from nlc.graph.build import instantiate

    flows = b.all(context, *args)
    settings = {key: b.number(value) for key, value in expr.kwargs}
    function, rename = instantiate(b, use, flows, settings, expr)
    graph = b.functions[function]
    out = graph.flows[graph.outputs[0][1]]
    axes = tuple(rename.get(axis, axis) for axis in out.axes)
    inner = b.flows[flows[0]]
    if times is not None and axes != inner.axes:
        message = (
            f"`repeat` needs a block whose output has the axes of its input; `{use}` makes {show_axes(axes)} of {show_axes(inner.axes)}"
        )
        b.fail(
            codes.ShapeMismatch,
            message,
            expr.span,
            None,
            [(f"`{flows[0]}` is defined here", inner.span), ("the output of the block", out.span)],
        )
    pairs = tuple((a, c) for a, c in rename.items() if a != c)
    return b.node("apply", flows, expr.span, context, name, axes, function=function, times=times, rename=pairs or None)


OPERATORS: dict[str, Operator] = {
    "linear": linear,
    "unembed": unembed,
    "conv": conv,
    "embed": embed,
    "rmsnorm": _norm("rmsnorm"),
    "layernorm": _norm("layernorm"),
    "rope": rope,
    "sum": _reduction("sum"),
    "mean": _reduction("mean"),
    "slice": slice_,
    "reshape": reshape,
    "next": next_,
    "new": new,
    "age": age,
    "cross_entropy": cross_entropy,
    "total": total,
    "solve": solve,
    "newton_schulz": newton_schulz,
    "gram": gram,
    "T": _of_a_matrix("T", "`T(A)`: the transpose of a matrix."),
    "inverse_root": inverse_root,
    "eigenbasis": _of_a_matrix("eigenbasis", "`eigenbasis(A)`: the eigenvectors of a symmetric matrix as columns, by rising eigenvalue."),
    "due": due,
    "repeat": repeat,
    "apply": apply,
}
