"""From the learners of a spec to learners of the graph: store, initial state, context, objective, rule, retention."""

from __future__ import annotations

from dataclasses import replace

from nlc.diagnostics import Span
from nlc.graph import codes
from nlc.graph.builder import Builder, Context
from nlc.graph.deep import Function, attach_function, copies_only, function_of, parts
from nlc.graph.generated import DISTRIBUTIONS, Generated, check_names, generates, init_of, is_generated
from nlc.graph.ir import (
    ANY,
    AS_WEIGHTS,
    STEPS,
    Attribute,
    Axes,
    Axis,
    Backprop,
    Clock,
    Flow,
    Init,
    Learner,
    Rule,
    Store,
    StoreTensor,
    Write,
    pred_id,
    show_axes,
    size_of,
)
from nlc.graph.loss_learners import attach_own, backprop_of, begins_as, declare_own, is_own, nothing_remains
from nlc.graph.proximal import implicit_rule, is_implicit
from nlc.graph.solved import is_solved, solved_context
from nlc.graph.window import length, windowed
from nlc.language import spec as language
from nlc.language.expression import Binary, Call, Expr, Lambda, ListOf, Name, Number, parts_of, to_text
from nlc.language.parser import parse

DEFAULT_OBJECTIVE = "0.5 * sum((pred - value)^2)"
"""What `minimize` is when it is absent; the library calls it l2."""

AT = ("start", "running", "decayed")


def declare(b: Builder, level: language.Level, learner: language.Learner) -> None:
    """Enter a learner without its context, so that flows may call it."""
    id = b.id_of(learner.name)
    clock = _clock(b, level, learner)
    per = tuple(b.axis(axis) for axis in learner.per)
    if b.host is not None:
        per = b.host.per + per
    if learner.view is not None and (learner.store is None or (learner.store.use is not None and learner.store.use.function == "like")):
        b.fail(codes.NotCompiledYet, "`view` of a learner without tensors of its own is not compiled yet", learner.spans["view"])
    if learner.owns is not None:
        stored: Store | Function = Store((StoreTensor("owned", (ANY,)),), "any")
    elif learner.store is None:
        b.fail(
            codes.MissingPart, f"learner `{learner.name}` has no `store` and owns nothing", learner.span, "give it a store, or `owns: rest`"
        )
    else:
        stored = _store(b, id, learner.store, learner.view, generates(b, learner), learner.learns_from_loss)
    if b.host is not None and isinstance(stored, Store) and stored.form == "map" and all(write.key is None for write in learner.learn):
        stored = Store(stored.tensors, "value", (), stored.tensors[0].axes)  # a memory without keys is asked for its tensor
    if learner.learns_from_loss:
        _own_clock(b, learner, clock)
    declared = parts(b, id, stored, per, learner)
    check_names(b, learner, tuple(store.tensors[0].name for store in declared.values()))
    for part, store in declared.items():
        group = id if isinstance(stored, Function) else f"{b.prefix}{learner.name}" if b.suffix else None
        _declare(b, level, learner, part, store, per, clock, group)
    if isinstance(stored, Function):
        b.written_out[id] = stored
    if learner.learns_from_loss:
        declare_own(b, level, learner, clock)
    elif level.remainder != "carry":
        nothing_remains(b, level, f"`{learner.name}` does not minimise the loss")


def _own_clock(b: Builder, learner: language.Learner, clock: Clock | None) -> None:
    """On which clock a learner of the loss ticks, and what its scope is there."""
    if b.host is not None:
        b.fail(codes.NotCompiledYet, "a learner of the loss in a rule is not compiled yet", learner.span)
    if clock is not None and clock.unit == "step" and learner.scope != "shared":
        b.fail(codes.BadChoice, f"`{learner.name}` ticks on the clock `step`, where all rows share it", learner.span, "add `scope: shared`")


def _declare(
    b: Builder, level: language.Level, learner: language.Learner, id: str, store: Store, per: Axes, clock: Clock | None, group: str | None
) -> None:
    """One learner of the graph."""
    defaults: list[tuple[str, str]] = []
    given = init_of(b, learner, store.tensors[0].name)
    begun = begins_as(b, learner, store.tensors[0]) if learner.learns_from_loss else None
    generated = begun is None and is_generated(b, given)
    init = begun or (Init("zeros") if generated else _init(b, learner, given, store, defaults))
    if generated and given is not None and not learner.learn:
        b.generated[id] = Generated(learner, given)
    elif not learner.learn and not init.learned and learner.owns is None:
        b.fail(
            codes.Untouched,
            f"learner `{learner.name}` is never written and always `{init}`",
            learner.span,
            "give it `init: learned`, or `learn:`",
        )
    if init.distribution == "eye" and (store.form == "any" or len(store.tensors[0].axes) < 2):
        b.fail(codes.NotConstant, f"`{id.removeprefix(b.prefix)}` is no matrix, so its `init` cannot be `eye`", learner.span)
    if init.learned and b.moves_weights:
        b.fail(codes.NotCompiledYet, "a learned initial state in the rule of an outer level is not compiled yet", learner.span)
    own = learner.learns_from_loss
    while_tokens_come = own and clock is not None and clock.unit == "token"
    if learner.scope == "stream" and not while_tokens_come:
        b.fail(codes.NotCompiledYet, "`scope: stream` of other learners than those of the loss is not compiled yet", learner.span)
    if learner.learn and learner.scope == "shared" and learner.owns is None and b.host is None and not own:
        b.fail(codes.NotCompiledYet, "a memory that all rows share is not compiled yet", learner.span, "leave `scope` out")
    if learner.learn and clock is None:
        b.fail(
            codes.MissingPart,
            f"learner `{learner.name}` learns, but its level has no `every`",
            learner.span,
            "add `every: 1 token` to the level",
        )
    read = learner.read or _default(defaults, "read", "after")
    inherited = b.host.sharing if b.host else "shared" if not learner.learn else None
    sharing = learner.scope or inherited or _default(defaults, "scope", "sequence")
    if own and not while_tokens_come and not init.learned:
        b.fail(codes.NotCompiledYet, f"`{learner.name}` ticks on the clock `step` and begins as `{init}`", learner.span, "`init: learned`")
    b.learners[id] = Learner(
        id,
        store,
        per,
        clock,
        level.name,
        init,
        read,
        sharing,
        selector=learner.owns,
        group=group,
        host=b.host.id if b.host else None,
        span=learner.span,
        backprop=_backprop(b, learner, defaults),
        defaults=tuple(defaults),
        like_weights=b.over_weights,
        owner=f"{b.prefix}{learner.name}" if while_tokens_come else None,
    )


def _backprop(b: Builder, learner: language.Learner, defaults: list[tuple[str, str]]) -> Backprop:
    """What of the outer gradient crosses its updates; a learner of a rule has that of its host."""
    given = learner.backprop
    if learner.learns_from_loss:
        if given is None:
            _default(defaults, "backprop", "first_order")
        return backprop_of(b, learner)
    if given is None:
        if learner.learn and learner.owns is None and b.host is None and not is_solved(learner):
            _default(defaults, "backprop", "unrolled")
        return b.host.backprop if b.host is not None else Backprop()
    span = learner.spans["backprop"]
    if b.host is not None:
        b.fail(codes.NotCompiledYet, "`backprop` of a learner in a rule is not compiled yet", span, "it has that of its host")
    if learner.owns is not None and not isinstance(given, str):
        return Backprop("truncated", _cut_of(b, given))
    if learner.owns is not None or not learner.learn:
        why = "only outer levels write its tensors" if learner.owns is None else "it is an outer level"
        b.fail(codes.NotCompiledYet, f"`backprop` has no effect on `{learner.name}`: {why}", span, "leave it out")
    if is_solved(learner):
        help = "`sg(k)` and `sg(v)` make its context a constant"
        b.fail(codes.NotCompiledYet, f"`backprop` has no effect on `{learner.name}`: it is solved exactly and makes no updates", span, help)
    return Backprop(given) if isinstance(given, str) else Backprop("truncated", _cut_of(b, given))


def _cut_of(b: Builder, given: language.Period) -> int:
    """The tokens between two cuts."""
    count = b.number(given.count)
    if given.clock != "token" or isinstance(count, float) or count < 1:
        text = f"`truncated` is {to_text(given.count)} {given.clock}s; it is a whole number of tokens, at least 1"
        b.fail(codes.BadPeriod, text, given.span, "for example `backprop: {truncated: 64 tokens}`")
    return int(count)


def _default(defaults: list[tuple[str, str]], key: str, value: str) -> str:
    defaults.append((key, value))
    return value


def _clock(b: Builder, level: language.Level, learner: language.Learner) -> Clock | None:
    if level.every is None:
        return None
    every = level.every
    count = b.number(every.count)
    if isinstance(count, float) or count < 1:
        b.fail(
            codes.BadPeriod,
            f"the period is {count}; it must be a whole number of at least 1",
            every.span,
            f"for example `every: 16 {every.clock}s`",
        )
    if b.over_weights:
        return _clock_over_weights(b, every, int(count))
    wanted = ("update",) if b.host is not None else ("token", "step")
    if every.clock not in wanted:
        place = "inside a rule" if b.host else "outside a rule"
        b.fail(
            codes.MixedLevel,
            f"the clock `{every.clock}` does not exist {place}",
            every.span,
            f"{place} the clock is {' or '.join(wanted)}",
        )
    if every.clock == "step" and count != 1 and learner.owns is None:
        b.fail(codes.NotCompiledYet, f"a period of {count} steps is not compiled yet", every.span)
    if every.clock == "update" and count != 1 and not b.moves_weights:
        return _slow_clock(b, every, int(count))
    return Clock(every.clock, int(count))


def _slow_clock(b: Builder, every: language.Period, count: int) -> Clock:
    """The clock of a slow learner in the rule of a memory, in tokens; the memory is updated at every token."""
    host = b.host
    assert host is not None
    if host.folds or host.samples is not None or host.host is not None:
        what = "of a learner in a rule" if host.host is not None else "that makes other than one update a token"
        text = f"a period of {count} updates in the rule {what} is not compiled yet"
        b.fail(codes.NotCompiledYet, text, every.span, "`every: 1 update`, or one update a token, `fold: each`")
    return Clock("token", count)


def _clock_over_weights(b: Builder, every: language.Period, count: int) -> Clock:
    """The clock of a learner that is like weights, in updates of these."""
    assert b.host is not None and b.host.clock is not None
    period = b.host.clock.period
    if every.clock != "step":
        b.fail(codes.MixedLevel, f"a learner like the weights of `{b.host.id}` ticks on the clock `step`", every.span, "`every: 100 steps`")
    if count % period:
        text = f"the period is {count} steps; it must be a multiple of that of `{b.host.id}`, {period} steps"
        b.fail(codes.BadPeriod, text, every.span, f"such as `every: {4 * period} steps`")
    return Clock("update", count // period)


def _store(
    b: Builder, id: str, store: language.Store, view: Expr | None, written_out: bool = False, named: bool = False
) -> Store | Function:
    """`written_out`: as a function of its tensors, whatever its call; `named`: and each is called by its name."""
    if named:
        whole = _store(b, id, _like(b, store) or store, view, written_out=True)
        return replace(whole, named=True) if isinstance(whole, Function) else whole
    if store.use is not None and store.use.function == "like":
        like = store.use.args[0] if store.use.args else None
        if b.over_weights and b.host is not None:
            return Store(b.host.store.tensors, "any")
        if not isinstance(like, Name) or like.name not in b.bound:
            help = "in a model, a learner with `owns`"
            b.fail(codes.NotCompiledYet, "`like` takes an input of the rule in this version", store.span, help)
        copies = b.host.copies if b.host else ()
        axes = tuple(axis for axis in b.flows[b.bound[like.name]].axes if axis not in copies)
        return Store((StoreTensor("like", axes),), "any")
    if store.use is None:
        tensors = tuple(StoreTensor(name, tuple(b.axis(axis) for axis in axes)) for name, axes, _ in store.tensors)
        if store.call is None or not isinstance(store.call, Lambda):
            b.fail(codes.MissingPart, "a store with `params` needs a `call`, for example `call: z -> z @ W`", store.span)
        body, query = store.call.body, store.call.parameter
        seen = view if isinstance(view, Lambda) else None
        known = None if written_out else _form(tensors, body, query, seen)
        return known or function_of(b, id, tensors, query, body, b, store.span, None, seen)
    return _used_store(b, id, store.use, store.span, view if isinstance(view, Lambda) else None, written_out)


def _like(b: Builder, store: language.Store) -> language.Store | None:
    """The store of the learner that another one is like."""
    if store.use is None or store.use.function != "like":
        return None
    named = store.use.args[0] if len(store.use.args) == 1 else None
    stores = {each.name: each.store for each in b.spec.learners}
    other = stores.get(named.name) if isinstance(named, Name) else None
    if other is None or (other.use is not None and other.use.function == "like"):
        b.fail(codes.NotCompiledYet, "`like` takes the name of a learner with a store of its own", store.span)
    return other


def _used_store(b: Builder, id: str, call: Call, span: Span, view: Lambda | None, written_out: bool) -> Store | Function:
    """A store file: its dims are the arguments, its tensor params the tensors, its output the call."""
    spec = b.used("stores", call.function, call.span)
    items = call.args[0].items if len(call.args) == 1 and isinstance(call.args[0], ListOf) else call.args
    if len(items) != len(spec.dims):
        b.fail(codes.WrongArguments, f"`{call.function}` takes {len(spec.dims)} axes; {len(items)} given", call.span)
    bound = {dim.name: b.axis(item) for dim, item in zip(spec.dims, items, strict=True)}
    tensors = tuple(
        StoreTensor(param.name, tuple(bound[item.name] for item in param.value.items if isinstance(item, Name) and item.name in bound))
        for param in spec.params
        if isinstance(param.value, ListOf)
    )
    query = spec.inputs[0].name if spec.inputs else ""
    body = spec.outputs[0].value
    declared = (spec.inputs[0].axes or ()) if spec.inputs else ()
    store = None if written_out else _form(tensors, body, query, view)
    if store is None:
        names = Builder(spec, b.library, {name: axis.size for name, axis in bound.items()}, prefix=b.prefix, host=b.host, into=b)
        axes = tuple(bound[name] for name in declared if name in bound)
        return function_of(b, id, tensors, query, body, names, span, axes, view)
    if tuple(bound.get(name) for name in declared) != store.in_axes:
        needed = f"`{query}` has axes [{', '.join(declared)}]; its tensor takes {show_axes(store.in_axes)}"
        b.fail(codes.ShapeMismatch, f"`{call.function}`: {needed}", spec.inputs[0].span if spec.inputs else spec.span)
    return store


def _form(tensors: tuple[StoreTensor, ...], call: Expr, query: str, view: Lambda | None) -> Store | None:
    """The store of a call `z @ W` or `W`; None for any other function, and where it is seen through a view."""
    if len(tensors) == 1 and view is None:
        W = tensors[0]
        match call:
            case Binary(op="@", left=Name(name=left), right=Name(name=right)) if left == query and right == W.name and len(W.axes) == 2:
                return Store(tensors, "map", W.axes[:1], W.axes[1:])
            case Name(name=name) if name == W.name:
                return Store(tensors, "value", (), W.axes)
    return None


def _init(b: Builder, learner: language.Learner, expr: Expr | None, store: Store, defaults: list[tuple[str, str]]) -> Init:
    if expr is None:
        if learner.owns is None:
            _default(defaults, "init", "zeros")
        return Init("zeros")
    match expr:
        case Call(args=(), kwargs=()) if b.over_weights and b.id_of(expr.function) == b.host_id:
            return AS_WEIGHTS
        case Name(name="learned"):
            if store.in_axes:
                return Init("normal", (size_of(store.in_axes) ** -0.5,), learned=True)
            return Init("zeros", learned=True)
        case Call(function="learned", args=(inner,), kwargs=()):
            return replace(_distribution(b, inner, expr), learned=True)
    init = _distribution(b, expr, expr)
    if init.distribution in ("normal", "uniform") and not b.moves_weights:
        b.fail(
            codes.NotCompiledYet,
            "a random initial state that is not learned is not compiled yet",
            expr.span,
            f"`learned({to_text(expr)})` draws a parameter",
        )
    return init


def _distribution(b: Builder, expr: Expr, whole: Expr | None) -> Init:
    name, args = (expr.name, ()) if isinstance(expr, Name) else (expr.function, expr.args) if isinstance(expr, Call) else ("", ())
    named = name not in DISTRIBUTIONS and (name in b.numbers or name in b.bound)
    if isinstance(expr, Number) or (isinstance(expr, Name) and named):
        return Init("constant", (float(b.number(expr)),))
    if DISTRIBUTIONS.get(name) != len(args):
        span = whole.span if whole is not None else expr.span
        known = "zeros, ones, eye, constant(c), normal(std), uniform(low, high), learned, learned(distribution)"
        b.fail(codes.NotConstant, f"`{to_text(expr)}` is no initial state", span, f"known: {known}")
    return Init(name, tuple(float(b.number(arg)) for arg in args))


def attach(b: Builder, learner: language.Learner) -> None:
    """Give a declared learner its writes, retention and rule."""
    id = b.id_of(learner.name)
    if not learner.learn:
        return
    if learner.learns_from_loss:
        declared = b.learners[id]
        on_steps = declared.clock is not None and declared.clock.unit == "step"
        b.learners[id] = _owner(b, declared, learner, learner.learn[0], list(declared.defaults)) if on_steps else declared
        if not on_steps:
            attach_own(b, learner)
        return
    if id in b.written_out:
        attach_function(b, learner, b.written_out[id])
        return
    declared = b.learners[id]
    if is_solved(learner):
        solved_context(b, learner)
        return
    write = learner.learn[0]
    defaults = list(declared.defaults)
    if learner.owns is not None:
        if len(learner.learn) > 1:
            b.fail(codes.NotCompiledYet, "several objectives of a learner that owns weights are not compiled yet", learner.learn[1].span)
        b.learners[id] = _owner(b, declared, learner, write, defaults)
        return
    prox = is_implicit(learner)
    steps = inner_steps(b, declared, write)
    at = "decayed" if prox and write.at is None else state_of_gradient(b, write, steps, defaults)
    declared = replace(declared, samples=b.host.samples if b.host else steps or _samples(b, declared, write, at))
    b.learners[id] = declared
    samples = length(b, declared, learner.learn, declared.store.form == "map")
    kept = declared.copies
    context = Context(f"{learner.name}", self_id=id, kept=kept, host=b.host.id if b.host else None)
    _on_the_first(b, learner)
    built = tuple(_write(b, declared, each, context, defaults, number) for number, each in enumerate(learner.learn))
    keep = None
    if write.keep is None:
        _default(defaults, "keep", "1")
    elif isinstance(write.keep, dict):
        help = "a gate for each tensor needs a store with `params` and `call`"
        b.fail(codes.WrongArguments, f"`{learner.name}` has one tensor, so it takes one `keep`", write.spans["keep"], help)
    else:
        keep = b.without_ones(b.expr(write.keep, replace(context, owner=f"{learner.name}.keep")), declared.axes)
        fits_gate(b, declared, keep, write.keep.span, "`keep`")
    declared = replace(declared, fold=_fold(b, declared, write, at, defaults))
    if samples > 1 or write.weight is not None:
        built = _windowed(b, declared, write, built[0], context, samples)
    elif weighs(declared, len(built)):
        built = tuple(_weighted(b, declared, each, one, context) for each, one in zip(learner.learn, built, strict=True))
    declared = replace(declared, writes=built)
    rule = implicit_rule(b, declared, write, context) if prox else _rule(b, declared, write, context, defaults)
    b.learners[id] = replace(declared, at=at, keep=keep, rule=rule, defaults=tuple(defaults))


def _windowed(b: Builder, learner: Learner, write: language.Write, first: Write, context: Context, samples: int) -> tuple[Write, ...]:
    """The writes of a window; see `nlc.graph.window`."""
    axes = b.flows[str(first.pred)].axes

    def predict(key: str, number: int) -> str:
        return b.node("pred", [], write.span, context, f"{first.pred}.{number + 1}", axes, learner=learner.id, write=number)

    return windowed(b, learner, write, first, context, samples, predict, lambda pred, value: _objective(b, write, pred, value, context, []))


def state_of_gradient(b: Builder, write: language.Write, steps: Axis | None, defaults: list[tuple[str, str]]) -> str:
    """What `at` says; where a sample is taken several times, the state left by the step before unless it says otherwise."""
    if write.at is None:
        return _default(defaults, "at", "start" if steps is None else "running")
    at = write.at.name if isinstance(write.at, Name) else "?"
    if at not in AT:
        b.fail(codes.BadChoice, f"`at` is {', '.join(f'`{word}`' for word in AT)} in this version", write.spans["at"])
    if steps is not None and at == "start":
        help = "leave `at` out, or `at: decayed`: the first step sees the state after `keep`"
        b.fail(codes.BadChoice, "`at: start` with `times`: each step stands at the state left by the one before", write.spans["at"], help)
    return at


def inner_steps(b: Builder, learner: Learner, write: language.Write) -> Axis | None:
    """The axis of `times: n`: n samples of a token that are all the same; None for one step."""
    if write.times is None:
        return None
    span, count = write.spans["times"], b.number(write.times)
    if not isinstance(count, int) or count < 1:
        b.fail(codes.BadSize, f"`times` is {count}; the number of steps on a sample is whole and at least 1", span)
    if learner.clock is None or learner.clock.unit != "token" or learner.clock.period != 1 or learner.host is not None:
        text = "`times` in a rule" if learner.host is not None else f"`times` on the clock `{learner.clock}`"
        b.fail(codes.NotCompiledYet, f"{text} is not compiled yet", span, "`every: 1 token` takes several steps on each sample")
    if isinstance(write.fold, dict) and set(write.fold) != {"token"}:
        b.fail(codes.NotCompiledYet, "`times` with samples along an axis is not compiled yet", span)
    return Axis(STEPS, count) if count > 1 else None


def _on_the_first(b: Builder, learner: language.Learner) -> None:
    """Refuse keys on a later write that hold for all of them."""
    for other in learner.learn[1:]:
        for key in ("keep", "at", "rule", "fold", "solve", "times"):
            if key in other.spans:
                b.fail(codes.WrongArguments, f"`{key}` holds for all writes of a learner", other.spans[key], "it stands on the first write")


def _samples(b: Builder, learner: Learner, write: language.Write, at: str) -> Axis | None:
    """The axis of `fold: {R: each}`: a token holds R samples, one after the other."""
    if not isinstance(write.fold, dict):
        return None
    span = write.spans.get("fold", write.span)
    names = [name for name in write.fold if name != "token"]
    if not names:
        return None
    if len(names) > 1 or write.fold[names[0]] != "each":
        text = f"`fold: {{{names[0]}: {write.fold[names[0]]}}}` is not compiled yet"
        b.fail(codes.NotCompiledYet, text, span, "`fold: {R: each}` takes the samples of a token one after the other")
    if learner.clock is None or learner.clock.unit != "token" or learner.clock.period != 1:
        b.fail(codes.NotCompiledYet, f"samples along an axis on the clock `{learner.clock}` are not compiled yet", span)
    if at == "start":
        help = "`at: decayed` or `at: running`: each sample sees those before it"
        b.fail(codes.NotCompiledYet, "samples along an axis with gradients at `start` are not compiled yet", span, help)
    return b.axis(Name(names[0], span))


def fits_gate(b: Builder, learner: Learner, gate: str, span: Span, what: str) -> None:
    """A gate is a number for each copy, or for each channel of its keys or of its values."""
    store, flow = learner.store, b.flows[gate]
    twice = [axis.name for axis in flow.axes if learner.axes.count(axis) > 1]
    if twice:
        text = f"{what} has the axis `{twice[0]}`, which is one of the keys and one of the values"
        b.fail(codes.ShapeMismatch, text, span, "give the two axes of the store different names: `dims: {K: 64, V: K}`")
    sides = (store.in_axes, store.out_axes) if store.form != "any" else tuple((axis,) for axis in store.tensors[0].axes if axis != ANY)
    side = next((side for side in sides if set(side) & set(flow.axes)), ())
    b.fits(gate, (*learner.copies, *side), span, what)


def weighs(learner: Learner, writes: int) -> bool:
    """Does each gradient have a rate of its own, before they are added?"""
    return writes > 1 or learner.adds_up is not None or any(write.rate is not None for write in learner.writes)


def _weighted(b: Builder, learner: Learner, spec: language.Write, write: Write, context: Context) -> Write:
    """One of several gradients that are added, with the rate of its own."""
    if spec.rate is None or spec.rule is not None:
        return write
    rate = b.without_ones(b.expr(spec.rate, replace(context, owner=f"{context.owner}.rate")), learner.axes)
    fits_gate(b, learner, rate, spec.rate.span, "`rate`")
    return replace(write, rate=rate)


def _write(
    b: Builder, learner: Learner, write: language.Write, context: Context, defaults: list[tuple[str, str]], number: int = 0
) -> Write:
    store, name = learner.store, context.owner
    copies = learner.copies
    out = copies + (store.out_axes or store.tensors[0].axes)
    key = value = None
    if write.key is not None:
        if store.form != "map":
            b.fail(codes.WrongArguments, f"`{name}` has a store without a query, so `learn` takes no `key`", write.key.span)
        key = b.expr(write.key, replace(context, owner=f"{name}.key"))
        b.fits(key, copies + store.in_axes, write.key.span, "`key`", store.in_axes)
    elif store.form == "map":
        b.fail(codes.MissingPart, f"`{name}` maps a key to a value, so `learn` needs a `key`", write.span, "add `key: k`")
    if write.value is not None:
        value = b.expr(write.value, replace(context, owner=f"{name}.value"))
        b.fits(value, out, write.value.span, "`value`", () if store.form == "any" else store.out_axes)
    elif write.minimize is None or not b.moves_weights:
        b.fail(codes.MissingPart, f"`learn` of `{name}` needs a `value`", write.span, "add `value: v`")
    pred = f"{learner.id}.pred{f'.{number + 1}' if number else ''}"
    b.node("pred", [], write.span, context, pred, out, learner=learner.id, write=number or None)
    local = _own_tensor(b, learner, write, number)
    loss = _objective(b, write, pred, value, replace(context, local=local), defaults)
    return Write(key, value, loss, pred, write.span)


def _own_tensor(b: Builder, learner: Learner, write: language.Write, number: int) -> dict[str, str]:
    """`self.W` in an objective: the tensor that the gradient is taken of."""
    name = f"self.{learner.store.tensors[0].name}"
    if learner.store.form != "map" or write.minimize is None or name not in map(to_text, parts_of(write.minimize)):
        return {}
    attrs: dict[str, Attribute] = {"learner": learner.id, "state": "at", "pred": True, **({"write": number} if number else {})}
    return {name: b.add(Flow(pred_id(learner.id, number), "tensor", attrs=attrs, axes=learner.axes, span=write.minimize.span))}


def _objective(b: Builder, write: language.Write, pred: str, value: str | None, context: Context, defaults: list[tuple[str, str]]) -> str:
    local = {**context.local, "pred": pred, **({"value": value} if value is not None else {})}
    inner = replace(context, owner=f"{context.owner}.objective", local=local, self_id=None)
    expr = write.minimize
    if expr is None:
        _default(defaults, "minimize", DEFAULT_OBJECTIVE)
        return b.expr(parse(DEFAULT_OBJECTIVE), inner)
    if isinstance(expr, Call) and (spec := b.objective_called(expr.function)) is not None:
        return _called(b, expr, spec, inner)
    if not isinstance(expr, Name):
        return b.expr(expr, inner)
    return _called(b, Call(expr.name, (), (), expr.span), b.used("objectives", expr.name, expr.span), inner)


def _called(b: Builder, call: Call, spec: language.Spec, inner: Context) -> str:
    """An objective of the library, its params bound to numbers or flows: `{huber: {delta: d}}`."""
    bound = {i.name: inner.local.get(i.kind) for i in spec.inputs}
    if None in bound.values() or not spec.outputs:
        message = f"`{call.function}` is no objective: its inputs must be `pred` and `value`, and it has one output"
        b.fail(codes.MissingPart, message, call.span)
    given = rule_args(b, copies_only(inner.kept), call, spec, replace(inner, local={}))
    known = {k: v for k, v in bound.items() if v is not None}
    child = Builder(spec, b.library, bound={**known, **dict(given)}, prefix=b.prefix, host=b.host, into=b, asked=call)
    return child.expr(spec.outputs[0].value, inner)


def _rule(b: Builder, learner: Learner, write: language.Write, context: Context, defaults: list[tuple[str, str]]) -> Rule:
    """A rule call stays as it is until `expand-templates`; a plain rate is the gradient step, written out here."""
    name = context.owner
    if isinstance(write.rule, dict):
        text = f"`rule` of `{name}` names tensors, but its store has one"
        b.fail(
            codes.BadChoice, text, write.spans["rule"], "a store of several tensors, `{params: {W1: .., W2: ..}}`, may have a rule for each"
        )
    if write.rule is not None:
        spec = b.used("optimizers", write.rule.function, write.rule.span)
        here = replace(context, owner=f"{name}.rule", host=learner.id if learner.selector is not None else context.host)
        return Rule(write.rule, spec, rule_args(b, learner, write.rule, spec, here))
    gradient = gradient_of(b, learner, write.span)
    here = replace(context, host=learner.id)
    if len(learner.writes) == 1 and write.rate is None:
        _default(defaults, "rate", "1")
    if write.rate is None or weighs(learner, len(learner.writes)):
        step = b.node("neg", [gradient], write.span, here, f"{learner.id}.step")
    else:
        rate = b.without_ones(b.expr(write.rate, replace(context, owner=f"{name}.rate")), learner.axes)
        fits_gate(b, learner, rate, write.rate.span, "`rate`")
        scaled = b.node("mul", [rate, gradient], write.rate.span, here, f"{learner.id}.step:mul")
        step = b.node("neg", [scaled], write.rate.span, here, f"{learner.id}.step")
    return Rule(gradient=gradient, step=step)


def rule_args(b: Builder, learner: Learner, call: Call, spec: language.Spec, context: Context) -> tuple[tuple[str, str], ...]:
    """The params of a rule bound to flows of the host."""
    names = [param.name for param in spec.params]
    if len(call.args) > len(names):
        b.fail(codes.WrongArguments, f"`{call.function}` takes {len(names)} params; {len(call.args)} given", call.span)
    given = [*zip(names, call.args, strict=False), *call.kwargs]
    bound: dict[str, str] = {}
    for name, value in given:
        if name not in names or name in bound:
            what = "is given twice" if name in bound else "is no param of it"
            b.fail(
                codes.WrongArguments,
                f"`{call.function}`: `{name}` {what}",
                value.span,
                b.suggest(name, names) or f"params: {', '.join(names)}",
            )
        flow = b.without_ones(b.expr(value, replace(context, owner=f"{context.owner}.{name}")), learner.axes)
        fits_gate(b, learner, flow, value.span, f"`{name}`")
        bound[name] = flow
    return tuple(bound.items())


def gradient_of(b: Builder, learner: Learner, span: Span) -> str:
    """What a rule is given, with the axes of the learner's tensors: the gradient of its objective, or a sum.

    Several writes are added; `fold: sum` and `mean` add the tokens of a period.
    """
    id = f"{learner.id}.gradient"
    if id in b.flows:
        return id
    if not weighs(learner, len(learner.writes)):
        axes = (*learner.of_a_token, *learner.axes)
        return b.add(Flow(id, "gradient", attrs={"learner": learner.id}, axes=axes, host=learner.id, span=span))
    here = Context(learner.id, host=learner.id)
    parts: list[str] = []
    whole = f"{id}:sample" if learner.adds_up else id
    for number, write in enumerate(learner.writes):
        attrs: dict[str, Attribute] = {"learner": learner.id, "write": number}
        axes = (*learner.of_a_token, *learner.axes)
        leaf = b.add(Flow(f"{id}.{number + 1}", "gradient", attrs=attrs, axes=axes, host=learner.id, span=write.span))
        name = whole if len(learner.writes) == 1 else f"{leaf}:mul"
        parts.append(leaf if write.rate is None else b.node("mul", [write.rate, leaf], write.span, here, name))
    total = parts[0]
    for number, part in enumerate(parts[1:], 2):
        total = b.node("add", [total, part], span, here, whole if number == len(parts) else f"{id}:{number}")
    return total if whole == id else _period(b, learner, total, id, span, here)


def _period(b: Builder, learner: Learner, sample: str, id: str, span: Span, here: Context) -> str:
    """The sum over the tokens of a period, or their mean."""
    name = id if learner.adds_up == "sum" else f"{id}:sum"
    total = b.node("folded", [sample], span, here, name, b.flows[sample].axes, learner=learner.id)
    if learner.adds_up == "sum":
        return total
    assert learner.clock is not None
    return b.node("div", [total, b.constant(learner.clock.period, span)], span, here, id)


def _fold(b: Builder, learner: Learner, write: language.Write, at: str, defaults: list[tuple[str, str]]) -> dict[str, str]:
    """How the tokens of a period are taken."""
    if learner.samples is not None and learner.samples.name != STEPS:
        return {learner.samples.name: "each"}
    span = write.spans.get("fold", write.span)
    if learner.clock is None or learner.clock.period == 1:
        slow = isinstance(write.fold, Name) and b.host is not None  # the period is a param
        each = isinstance(write.fold, Name) and write.fold.name == "each"  # so it is, whatever the period
        if write.fold is not None and not slow and not each:
            b.fail(codes.NotCompiledYet, "`fold` has no effect where a period holds one sample", span, "leave it out")
        return {}
    if isinstance(write.fold, dict):  # other axes are refused before
        word = write.fold["token"]
    else:
        word = write.fold.name if isinstance(write.fold, Name) else _default(defaults, "fold", "sum")
    if b.host is not None and word not in ("sum", "mean", "last"):
        b.fail(codes.NotCompiledYet, f"`fold: {word}` in a rule is not compiled yet", span, "`sum`, `mean` and `last` are")
    if word in ("sum", "mean"):
        help = "`at: start` is the state within the period; `fold: each` makes one update a token"
        if write.solve == "implicit":
            b.fail(codes.NotCompiledYet, f"`solve: implicit` with `fold: {word}` is not compiled yet", write.spans["solve"], "`fold: last`")
        if at == "decayed":
            b.fail(codes.NotCompiledYet, f"`at: decayed` with `fold: {word}` is not compiled yet", write.spans["at"], help)
    return {"update" if b.host is not None else learner.clock.unit: word}


def _owner(b: Builder, learner: Learner, spec: language.Learner, write: language.Write, defaults: list[tuple[str, str]]) -> Learner:
    """A learner of tensors that are declared elsewhere: the outer levels."""
    if learner.clock is None or learner.clock.unit != "step":
        b.fail(
            codes.NotCompiledYet,
            "a learner that owns weights ticks on the clock `step` in this version",
            spec.span,
            "put it under `every: 1 step`",
        )
    if not isinstance(write.minimize, Name) or write.minimize.name != "loss":
        b.fail(codes.MissingPart, "a learner that owns weights minimises `loss`", write.span, "add `minimize: loss`")
    if b.spec.loss is None and not is_own(learner):
        b.fail(codes.MissingPart, "`minimize: loss`, but the spec has no `loss`", write.minimize.span, "add a top-level `loss:`")
    for key in ("key", "value", "keep", "at", "times", "over", "weight", "solve"):
        if key in write.spans:
            b.fail(
                codes.NotCompiledYet,
                f"`{key}` of a learner that owns weights is not compiled yet",
                write.spans[key],
                "write it in the rule",
            )
    if (spec.read or "after") != "start":
        b.fail(codes.TickCycle, "the loss would need the weights that its own gradient makes", spec.span, "add `read: start`")
    fold = write.fold if isinstance(write.fold, dict) else {}
    words: dict[str, tuple[str, ...]] = {"row": ("sum", "mean"), "token": ("sum", "mean")}
    if learner.clock.period > 1:
        words["step"] = ("sum", "mean", "last")
    if set(fold) != set(words) or any(fold[axis] not in known for axis, known in words.items()):
        help = f"`fold: {{{', '.join(f'{axis}: mean' for axis in words)}}}`"
        what = "rows, tokens and steps" if "step" in words else "rows and tokens"
        b.fail(codes.MissingPart, f"a shared learner must say how {what} are folded", write.spans.get("fold", write.span), help)
    if learner.sharing != "shared":
        b.fail(codes.BadChoice, "weights are shared by all rows", spec.span, "add `scope: shared`")
    context = Context(spec.name, self_id=learner.id)
    rule = _rule(b, learner, write, context, defaults)
    return replace(
        learner, writes=(Write(None, None, b.loss_of(write.span), None, write.span),), rule=rule, fold=dict(fold), defaults=tuple(defaults)
    )
