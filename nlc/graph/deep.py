"""Stores that are functions of their tensors, `z -> W1 @ gelu(W2 @ z)`: each call is written out as flows.

Every tensor of such a store is a learner of its own, `S.W1`, with the context, objective, rule and clock of the declared `S`; their
gradients are taken together, at one state. A call puts the body of the store in its place: the tensors are leaves `tensor`, their
products `contract`. So each layer is a matrix memory between two flows. A store of one tensor keeps the id `S`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from nlc.diagnostics import Span
from nlc.graph import codes
from nlc.graph.builder import Builder, Context, Rejected
from nlc.graph.ir import Axes, Flow, Learner, Rule, Store, StoreTensor, Write, pred_id, show_axes
from nlc.graph.window import length, windowed
from nlc.language import spec as language
from nlc.language.expression import Attribute, Binary, Call, Expr, Lambda, Name, children, to_text


@dataclass
class Function:
    """A store that is written out. `tensors` maps the name of a tensor to the id of its learner; `names` resolves all other names.

    `in_axes` are those of a query, None where the store does not say.
    """

    id: str
    stores: dict[str, Store]
    parameter: str
    body: Expr
    names: Builder
    span: Span
    in_axes: Axes | None = None
    per: Axes = ()
    view: Lambda | None = None
    """What calls and gradients see of each tensor."""
    broken: bool = False
    named: bool = False
    """Is even a single tensor called by its name, `S.W`?"""

    @property
    def tensors(self) -> dict[str, str]:
        single = len(self.stores) == 1 and not self.named
        return {name: self.id if single else f"{self.id}.{name}" for name in self.stores}

    @property
    def asks(self) -> bool:
        """False where the body ignores its argument."""
        return any(name.name == self.parameter for name in names_in(self.body))


def names_in(expr: Expr) -> Iterator[Name]:
    if isinstance(expr, Name):
        yield expr
    for child in children(expr):
        yield from names_in(child)


def function_of(
    b: Builder,
    id: str,
    tensors: tuple[StoreTensor, ...],
    parameter: str,
    body: Expr,
    names: Builder,
    span: Span,
    in_axes: Axes | None,
    view: Lambda | None = None,
) -> Function:
    """The store of a learner whose call is neither `z @ W` nor `W`, or that is seen through a view."""
    if b.host is not None:
        b.fail(codes.NotCompiledYet, f"a store that computes `{to_text(body)}` in a rule is not compiled yet", span, "`z @ W` and `W` are")
    used = {name.name for name in names_in(body)}
    for tensor in tensors:
        if tensor.name not in used:
            b.fail(
                codes.UnusedTensor,
                f"the tensor `{tensor.name}` does not occur in `{to_text(body)}`",
                span,
                f"use `{tensor.name}` in `call`, or take it out of `params`",
            )
    return Function(id, {t.name: _part(t, body) for t in tensors}, parameter, body, names, span, in_axes, view=view)


def _part(tensor: StoreTensor, body: Expr) -> Store:
    """One tensor; a matrix knows the axis that its first product contracts: the last in `W @ z`, the first in `z @ W`."""
    side = next(_sides(tensor.name, body), None) if len(tensor.axes) > 1 else None
    if side is None:
        return Store((tensor,), "tensor", (), tensor.axes)
    inner, outer = (tensor.axes[-1:], tensor.axes[:-1]) if side == "left" else (tensor.axes[:1], tensor.axes[1:])
    return Store((tensor,), "tensor", inner, outer, side == "left")


def _sides(name: str, expr: Expr) -> Iterator[str]:
    if isinstance(expr, Binary) and expr.op == "@":
        for side, operand in (("left", expr.left), ("right", expr.right)):
            if isinstance(operand, Name) and operand.name == name:
                yield side
    for child in children(expr):
        yield from _sides(name, child)


def parts(b: Builder, id: str, store: Store | Function, per: Axes, learner: language.Learner) -> dict[str, Store]:
    """The learners that a declared learner becomes, and their stores: one, or one for each tensor of a function."""
    if isinstance(store, Store):
        return {id: store}
    for name, part in store.stores.items():
        twice = [axis for axis in part.tensors[0].axes if axis in per]
        if twice:
            message = f"`{name}` has the axis `{twice[0]}`, which counts the copies of `{learner.name}` too"
            b.fail(codes.ShapeMismatch, message, store.span, "give one of the two dims another name")
    for write in learner.learn:
        if write.solve is not None and write.solve != "gradient":
            b.fail(
                codes.NotCompiledYet, f"`solve: {write.solve}` of a function of several tensors is not compiled yet", write.spans["solve"]
            )
    store.per = per
    return {store.tensors[name]: part for name, part in store.stores.items()}


# -- calls --------------------------------------------------------------------------------------------------------------


def ask_function(b: Builder, expr: Call, context: Context, name: str | None, store: Function, state: str) -> str:
    """`S(q)`: the body of the store with the query in the place of its argument."""
    if len(expr.args) != store.asks:
        wanted = "one query" if store.asks else "no query: its store ignores it"
        b.fail(codes.WrongArguments, f"`{expr.function}` takes {wanted}; {len(expr.args)} given", expr.span)
    query = b.expr(expr.args[0], context) if expr.args else None
    return write_out(b, store, query, f"the query of `{expr.function}`", expr.span, context, name, state)


def write_out(
    b: Builder,
    store: Function,
    query: str | None,
    what: str,
    span: Span,
    context: Context,
    name: str | None,
    state: str,
    write: int | None = None,
) -> str:
    """The flows of one call. `write`: the tensors are those that the gradient of this write is taken of."""
    if query is not None and b.flows[query].dtype == "index":
        b.fail(codes.WrongType, f"{what} is an index; it must be numbers", span)
    if query is not None and store.in_axes is not None:
        b.fits(query, store.per + store.in_axes, span, what, store.in_axes)
    if store.broken:  # its mistake is reported already
        raise Rejected
    local = {tensor: _leaf(b, store, id, state, write) for tensor, id in store.tensors.items()}
    if query is not None:
        local[store.parameter] = query
    inner = Context(context.owner, local, kept=store.per, in_store=True)
    try:
        return store.names.expr(store.body, inner, name)
    except Rejected:
        store.broken = True
        raise


def _leaf(b: Builder, store: Function, id: str, state: str, write: int | None = None) -> str:
    """The tensor of a learner in one of its versions, or the one that the gradient of a write is taken of; seen through its view."""
    learner = b.learners[id]
    if id in b.generated:
        from nlc.graph.generated import held

        leaf = held(b, id)
        return leaf if store.view is None else _seen(b, store, store.view, leaf)
    if write is None or store.view is not None:
        leaf = f"{id}:{state}"
        if leaf not in b.flows:
            b.add(Flow(leaf, "tensor", attrs={"learner": id, "state": state}, axes=learner.axes, span=learner.span))
        seen = leaf if store.view is None else _seen(b, store, store.view, leaf)
        if write is None:
            return seen
    pred = pred_id(id, write)
    if pred not in b.flows:
        attrs: dict[str, str | int] = {"learner": id, "state": state, "pred": True, **({"write": write} if write else {})}
        args = (seen,) if store.view is not None else ()
        b.add(Flow(pred, "tensor", args, attrs, learner.axes, span=learner.span))
    return pred


def _seen(b: Builder, store: Function, view: Lambda, leaf: str) -> str:
    """A tensor through the view of its learner."""
    id = f"{leaf}:view"
    if id not in b.flows:
        context = Context(id, local={view.parameter: leaf}, kept=store.per, in_store=True)
        made = b.expr(view.body, context, id)
        b.fits(made, b.flows[leaf].axes, view.span, "`view`", b.flows[leaf].axes)
        return made
    return id


def tensor_of(b: Builder, expr: Attribute) -> str:
    """`S.W1`: a tensor of a learner, in the version that its calls see."""
    id = b.id_of(expr.owner)
    if expr.owner not in (*b.local_learners, "self"):
        known = tuple(b.local_learners)
        b.fail(codes.UndefinedName, f"there is no learner `{expr.owner}`", expr.span, b.suggest(expr.owner, known))
    if id not in b.written_out:
        message = f"`{to_text(expr)}`: a tensor of a learner whose store is no function of several tensors is not compiled yet"
        b.fail(codes.NotCompiledYet, message, expr.span, None if id in b.learners else "call the learner")
    tensors = b.written_out[id].tensors
    if expr.name not in tensors:
        help = b.suggest(expr.name, tuple(tensors)) or f"its tensors: {', '.join(tensors)}"
        b.fail(codes.UndefinedName, f"`{expr.owner}` has no tensor `{expr.name}`", expr.span, help)
    return _leaf(b, b.written_out[id], tensors[expr.name], b.learners[tensors[expr.name]].read)


def product(b: Builder, expr: Binary, context: Context, name: str | None) -> str:
    """`W @ z`: the last axis of the left operand is contracted with the first of the right; axes of copies stand aside."""
    left, right = b.all(context, expr.left, expr.right)
    flows = (b.flows[left], b.flows[right])
    learners = [b.learners[flow.attr("learner")] for flow in flows if flow.op == "tensor"]
    if b.moves_weights and not learners:
        return _matrix_product(b, expr, (left, right), context, name)
    if not context.in_store and not learners:
        b.fail(codes.NotCompiledYet, f"`{to_text(expr)}`: a product without a tensor of a learner is not compiled yet", expr.span)
    per = context.kept if context.in_store else learners[0].per
    inner = [tuple(axis for axis in flow.axes if axis not in per) for flow in flows]
    notes = [(f"`{to_text(e)}` has axes {show_axes(f.axes)}", f.span) for e, f in zip((expr.left, expr.right), flows, strict=True)]

    def wrong(problem: str, help: str) -> None:
        b.fail(codes.ShapeMismatch, f"`{to_text(expr)}`: {problem}", expr.span, help, notes)

    if not all(inner):
        wrong("an operand has no axis to contract", "multiply numbers with `*`")
    if len(inner[0]) > 1 and len(inner[1]) > 1:
        wrong("both operands are matrices", "multiply a matrix with a vector: `W1 @ (W2 @ z)`")
    if inner[0][-1] != inner[1][0]:
        problem = f"the last axis of the left operand, `{inner[0][-1]}`, is contracted with the first of the right, `{inner[1][0]}`"
        wrong(problem, "they must be the same axis; `z @ W` and `W @ z` differ")
    copies = tuple(axis for axis in per if any(axis in flow.axes for flow in flows))
    axes = copies + inner[0][:-1] + inner[1][1:]
    return b.node("contract", [left, right], expr.span, context, name, axes, copies=len(copies))


def _matrix_product(b: Builder, expr: Binary, operands: tuple[str, str], context: Context, name: str | None) -> str:
    """`A @ B` of two matrices in the rule of weights."""
    flows = [b.flows[id] for id in operands]
    notes = [(f"`{to_text(e)}` has axes {show_axes(f.axes)}", f.span) for e, f in zip((expr.left, expr.right), flows, strict=True)]
    if any(len(flow.axes) != 2 for flow in flows):
        help = "a rule for matrices says so: `inputs: {g: {gradient: [O, I]}}`"
        b.fail(codes.ShapeMismatch, f"`{to_text(expr)}`: an operand is no matrix", expr.span, help, notes)
    inner = [flows[0].axes[1], flows[1].axes[0]]
    if inner[0] != inner[1]:
        problem = f"`{inner[0]}`, the columns of the left operand, is not `{inner[1]}`, the rows of the right"
        b.fail(codes.ShapeMismatch, f"`{to_text(expr)}`: {problem}", expr.span, "`T(x)` is the transpose", notes)
    return b.node("contract", operands, expr.span, context, name, (flows[0].axes[0], flows[1].axes[1]), copies=0)


def copies_only(per: Axes) -> Learner:
    """Stands for a learner whose gates are one number for each copy."""
    return Learner("", Store((StoreTensor("", ()),), "tensor"), per)


# -- writes -------------------------------------------------------------------------------------------------------------


def attach_function(b: Builder, learner: language.Learner, store: Function) -> None:
    """Give every tensor of a declared learner its write, retention and rule; see `nlc.graph.learners.attach`."""
    from nlc.graph import learners as single

    write = learner.learn[0]
    if isinstance(write.fold, dict) and set(write.fold) != {"token"}:
        text = "samples along an axis, for a function of several tensors, are not compiled yet"
        b.fail(codes.NotCompiledYet, text, write.spans["fold"])
    single._on_the_first(b, learner)
    ids = store.tensors
    defaults = list(b.learners[next(iter(ids.values()))].defaults)
    first = b.learners[next(iter(ids.values()))]
    steps = single.inner_steps(b, first, write)
    at = single.state_of_gradient(b, write, steps, defaults)
    for id in ids.values():
        b.learners[id] = replace(b.learners[id], samples=steps)
    context = Context(learner.name, self_id=store.id, kept=store.per)
    built = tuple(_write(b, learner, each, store, context, defaults, number) for number, each in enumerate(learner.learn))
    first = b.learners[first.id]
    fold = single._fold(b, first, write, at, defaults)
    samples = length(b, replace(first, fold=fold), learner.learn, store.asks)
    if samples > 1 or write.weight is not None:
        built = _windowed(b, learner, store, context, built[0], samples)
    elif single.weighs(replace(first, fold=fold), len(built)):
        gates = copies_only(store.per)
        built = tuple(single._weighted(b, gates, each, one, context) for each, one in zip(learner.learn, built, strict=True))
    for id in ids.values():
        b.learners[id] = replace(b.learners[id], writes=built, fold=fold)
    keeps = _keeps(b, write, store, context, defaults)
    rules = _rules(b, write, store, context, defaults)
    for name, id in ids.items():
        b.learners[id] = replace(b.learners[id], at=at, keep=keeps.get(name), rule=rules[name], defaults=tuple(defaults))


def _write(
    b: Builder,
    learner: language.Learner,
    write: language.Write,
    store: Function,
    context: Context,
    defaults: list[tuple[str, str]],
    number: int,
) -> Write:
    from nlc.graph.learners import _objective

    name = learner.name
    if write.key is None and store.asks:
        b.fail(codes.MissingPart, f"`{name}` maps a key to a value, so `learn` needs a `key`", write.span, "add `key: k`")
    if write.key is not None and not store.asks:
        b.fail(codes.WrongArguments, f"`{name}` has a store without a query, so `learn` takes no `key`", write.key.span)
    if write.value is None:
        b.fail(codes.MissingPart, f"`learn` of `{name}` needs a `value`", write.span, "add `value: v`")
    key = b.expr(write.key, replace(context, owner=f"{name}.key")) if write.key is not None else None
    value = b.expr(write.value, replace(context, owner=f"{name}.value"))
    span = write.key.span if write.key is not None else write.span
    here = f"{name}.pred{f'.{number + 1}' if number else ''}"
    pred = _pred(b, store, key, span, replace(context, owner=here), number)
    axes = b.flows[pred].axes
    b.fits(value, axes, write.value.span, "`value`", tuple(axis for axis in axes if axis not in store.per))
    loss = _objective(b, write, pred, value, context, defaults)
    return Write(key, value, loss, pred, write.span)


def _pred(b: Builder, store: Function, key: str | None, span: Span, context: Context, number: int) -> str:
    """What the function answers to the key of a write."""
    return write_out(b, store, key, "`key`", span, context, f"{b.prefix}{context.owner}", "at", number)


def _windowed(b: Builder, learner: language.Learner, store: Function, context: Context, first: Write, samples: int) -> tuple[Write, ...]:
    """The writes of a window; see `nlc.graph.window`."""
    from nlc.graph.learners import _objective

    write, gates = learner.learn[0], replace(copies_only(store.per), id=store.id)

    def predict(key: str, number: int) -> str:
        return _pred(b, store, key, write.span, replace(context, owner=f"{learner.name}.pred.{number + 1}"), number)

    return windowed(b, gates, write, first, context, samples, predict, lambda pred, value: _objective(b, write, pred, value, context, []))


def _keeps(b: Builder, write: language.Write, store: Function, context: Context, defaults: list[tuple[str, str]]) -> dict[str, str]:
    """The gate of each tensor: one for all, or `{W1: a, W2: b}`, where a tensor that is not named is kept whole."""
    from nlc.graph.learners import _default

    given = write.keep
    if given is None:
        _default(defaults, "keep", "1")
        return {}
    if isinstance(given, Call) and given.function in store.tensors and len(given.args) == 1:  # a map with one entry
        given = {given.function: given.args[0]}
    if not isinstance(given, dict):
        return dict.fromkeys(store.tensors, _gate(b, given, store, replace(context, owner=f"{context.owner}.keep"), "`keep`"))
    found = {}
    for name, expr in given.items():
        if name not in store.tensors:
            b.fail(codes.UndefinedName, f"`{context.owner}` has no tensor `{name}`", expr.span, _tensors_near(b, name, store))
        found[name] = _gate(b, expr, store, replace(context, owner=f"{context.owner}.keep.{name}"), f"`keep` of `{name}`", name)
    return found


def _tensors_near(b: Builder, name: str, store: Function) -> str:
    return b.suggest(name, tuple(store.tensors)) or f"its tensors: {', '.join(store.tensors)}"


def _gate(b: Builder, expr: Expr, store: Function, context: Context, what: str, *tensors: str) -> str:
    """A number for each copy, or for each channel of one side of those tensors (all of them)."""
    learners = [b.learners[store.tensors[name]] for name in tensors or store.tensors]
    gate = b.without_ones(b.expr(expr, context), tuple(dict.fromkeys(axis for m in learners for axis in m.axes)))
    _fit(b, gate, learners, expr.span, what)
    return gate


def _fit(b: Builder, gate: str, learners: list[Learner], span: Span, what: str) -> None:
    from nlc.graph.learners import fits_gate

    for m in learners:
        fits_gate(b, m, gate, span, what)


def _rules(b: Builder, write: language.Write, store: Function, context: Context, defaults: list[tuple[str, str]]) -> dict[str, Rule]:
    """The rule of every tensor, the same or its own, each with its own gradient (and, when expanded, its own states)."""
    from nlc.graph.learners import _default, gradient_of, rule_args, weighs

    def called(call: Call, owner: str, *tensors: str) -> Rule:
        spec, learners = b.used("optimizers", call.function, call.span), [b.learners[store.tensors[name]] for name in tensors]
        args = rule_args(b, learners[0], call, spec, replace(context, owner=owner))
        for name, flow in args:
            _fit(b, flow, learners[1:], call.span, f"`{name}`")
        return Rule(call, spec, args)

    if isinstance(write.rule, dict):
        for name, call in write.rule.items():
            if name not in store.tensors:
                b.fail(codes.UndefinedName, f"`{context.owner}` has no tensor `{name}`", call.span, _tensors_near(b, name, store))
        missing = [name for name in store.tensors if name not in write.rule]
        if missing:
            text = f"`rule` of `{context.owner}` has none for `{missing[0]}`"
            b.fail(codes.MissingPart, text, write.spans["rule"], "name a rule for each tensor of the store")
        return {name: called(call, f"{context.owner}.rule.{name}", name) for name, call in write.rule.items()}
    if write.rule is not None:
        return dict.fromkeys(store.tensors, called(write.rule, f"{context.owner}.rule", *store.tensors))
    rate = None
    if write.rate is None:
        _default(defaults, "rate", "1")
    elif not weighs(first := b.learners[next(iter(store.tensors.values()))], len(first.writes)):
        rate = _gate(b, write.rate, store, replace(context, owner=f"{context.owner}.rate"), "`rate`")
    found = {}
    for name, id in store.tensors.items():
        here, span = replace(context, host=id), write.rate.span if write.rate is not None else write.span
        gradient = gradient_of(b, b.learners[id], write.span)
        scaled = gradient if rate is None else b.node("mul", [rate, gradient], span, here, f"{id}.step:mul")
        found[name] = Rule(gradient=gradient, step=b.node("neg", [scaled], span, here, f"{id}.step"))
    return found
