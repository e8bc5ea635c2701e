"""Learners with a store of their own that minimise the loss of the spec: the levels of a continuum memory (Nested Learning, eq. 70-74).

`F: {store: {mlp: [d, h, d]}, init: learned, read: start, learn: {minimize: loss, rate: eta}}` is a tensor for each of its store, `F.W1`,
that calls read as it was at the start of the period, and the learner `F`, which owns them as an outer level owns weights: its rule is
written for whole tensors. On the clock `token` the tensors are states, on the clock `step` they are parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nlc.diagnostics import Diagnostic
from nlc.graph import codes
from nlc.graph.builder import CALLER, Builder, Context
from nlc.graph.generated import init_of, is_generated
from nlc.graph.ir import ANY, OWN, Backprop, Clock, Init, Learner, LevelGraph, Rule, Store, StoreTensor, Write
from nlc.graph.sequences import document
from nlc.language import spec as language
from nlc.language.expression import Call, Name

LASTING = ("input", "recall", "attend", "conv", "delay", "position", "boundary", "next", "new")
"""Operators whose value differs from token to token."""


def is_own(learner: Learner) -> bool:
    """Does a learner own the tensors of its own store?"""
    return learner.selector == OWN


def declare_own(b: Builder, level: language.Level, learner: language.Learner, clock: Clock | None) -> None:
    """Enter the learner that owns the tensors of a store; the tensors are there."""
    id = b.id_of(learner.name)
    tensors = tuple(m.id for m in b.learners.values() if m.group == id and m.host is None)
    store = Store((StoreTensor("owned", (ANY,)),), "any")
    sharing = b.learners[tensors[0]].sharing
    b.learners[id] = Learner(id, store, clock=clock, level=level.name, read="start", sharing=sharing, selector=OWN, owns=tensors)
    lasts = clock is not None and clock.unit == "token" and sharing != "sequence"
    unsaid = (("remainder", "carry"),) if lasts and "remainder" not in level.spans else ()
    b.learners[id] = replace(b.learners[id], span=learner.span, defaults=(*b.learners[tensors[0]].defaults, *unsaid))
    b.learners[id] = replace(b.learners[id], backprop=b.learners[tensors[0]].backprop, remainder=level.remainder)
    if level.remainder != "carry" and clock is not None and clock.unit == "step":
        nothing_remains(b, level, f"`{learner.name}` ticks on the clock `step`, which no sequence ends")
    elif level.remainder != "carry" and sharing == "sequence":
        nothing_remains(b, level, f"`{learner.name}` begins anew with each sequence")


def nothing_remains(b: Builder, level: language.Level, why: str) -> None:
    """Refuse a remainder where no period is open at the end of a sequence that could be learned from."""
    text = f"`remainder: {level.remainder}` of `{level.name}` has nothing to act on: {why}"
    b.fail(
        codes.BadChoice,
        text,
        level.spans["remainder"],
        "only what learns from the loss and goes on after a sequence has one: `scope: stream` or `shared`",
    )


def backprop_of(b: Builder, learner: language.Learner) -> Backprop:
    """What of the outer gradient crosses the updates of a learner of the loss."""
    given = learner.backprop
    if given is None:
        return Backprop("first_order")
    if not isinstance(given, str):
        help = "`first_order`, `stop` or `unrolled`; the gradient of an update never leaves the shortest period"
        b.fail(codes.NotCompiledYet, f"`truncated` of `{learner.name}`, which learns from the loss, is not compiled yet", given.span, help)
    return Backprop(given)


def begins_as(b: Builder, learner: language.Learner, tensor: StoreTensor) -> Init | None:
    """`init: I()`: what another learner of the loss holds; None for any other initial state."""
    init = init_of(b, learner, tensor.name)
    if init is None or not is_generated(b, init):
        return None
    if not isinstance(init, Call) or init.args or init.kwargs or init.function not in b.local_learners:
        text = f"`{learner.name}` learns from the loss and begins as a flow: not compiled yet"
        b.fail(codes.NotCompiledYet, text, init.span, "`init: I()`, what another learner of the loss holds, or `init: learned`")
    other = next(each for each in b.spec.learners if each.name == init.function)
    if not learner.learns_from_loss or not other.learns_from_loss or other.name == learner.name:
        text = f"`{learner.name}` begins as what `{other.name}` holds; both must learn from the loss on the clock `token`"
        b.fail(codes.NotCompiledYet, text, init.span, "`init: learned` makes a first state that outer levels learn")
    return Init("state", of=f"{b.id_of(other.name)}.{tensor.name}")


def attach_own(b: Builder, learner: language.Learner) -> None:
    """Its objective, its fold and its rule."""
    from nlc.graph import learners as single

    declared, write = b.learners[b.id_of(learner.name)], learner.learn[0]
    if len(learner.learn) > 1:
        b.fail(codes.NotCompiledYet, "several objectives of a learner of the loss are not compiled yet", learner.learn[1].span)
    for key in ("key", "value", "over", "weight", "solve"):
        if key in write.spans:
            text = f"`{key}` has no meaning for `{learner.name}`: it minimises the loss of the model, not an objective of its own"
            b.fail(codes.BadChoice, text, write.spans[key], "leave it out")
    for key in ("keep", "at", "times"):
        if key in write.spans:
            b.fail(codes.NotCompiledYet, f"`{key}` of a learner of the loss is not compiled yet", write.spans[key], "write it in the rule")
    if isinstance(write.rule, dict):
        text = f"a rule for each tensor of `{learner.name}`, which learns from the loss, is not compiled yet"
        b.fail(codes.NotCompiledYet, text, write.spans["rule"], "one rule for all of them")
    if declared.read != (learner.read or "after"):
        help = "add `read: start`"
        b.fail(codes.TickCycle, f"the loss would need what its own gradient makes of `{learner.name}`", learner.span, help)
    _check_first(b, learner, declared)
    defaults = list(declared.defaults)
    fold = _fold(b, declared, write, defaults)
    context = Context(learner.name, self_id=declared.id)
    rule = single._rule(b, declared, write, context, defaults)
    _same_at_all_tokens(b, rule, write)
    loss = b.loss_of(write.minimize.span if write.minimize is not None else write.span)
    writes = (Write(None, None, loss, None, write.span),)
    b.learners[declared.id] = replace(declared, writes=writes, rule=rule, fold=fold, defaults=tuple(defaults))


def _check_first(b: Builder, learner: language.Learner, declared: Learner) -> None:
    """A first state that is that of another learner is of the same tensors."""
    for id in declared.owns:
        of = b.learners[id].init.of
        if of is not None and (of not in b.learners or b.learners[of].axes != b.learners[id].axes):
            text = f"`{learner.name}` begins as what another learner holds, which has other tensors: `{of}`"
            b.fail(codes.ShapeMismatch, text, learner.spans.get("init", learner.span), "`store: {like: ..}`")


def _fold(b: Builder, declared: Learner, write: language.Write, defaults: list[tuple[str, str]]) -> dict[str, str]:
    """How the gradients of the tokens of a period make one, and of the rows, where these share a state."""
    span = write.spans.get("fold", write.span)
    given = write.fold if isinstance(write.fold, dict) else {"token": write.fold.name} if isinstance(write.fold, Name) else {}
    if not given and declared.sharing != "shared":
        defaults.append(("fold", "sum"))
        given = {"token": "sum"}
    wanted = {"token", "row"} if declared.sharing == "shared" else {"token"}
    if set(given) != wanted or not set(given.values()) <= {"sum", "mean"}:
        help = f"`fold: {{{', '.join(f'{axis}: sum' for axis in sorted(wanted, reverse=True))}}}`, or `mean`"
        b.fail(codes.BadChoice, f"`{declared.id}` says how {' and '.join(f'{axis}s' for axis in sorted(wanted))} are folded", span, help)
    return dict(given)


def _same_at_all_tokens(b: Builder, rule: Rule, write: language.Write) -> None:
    """Refuse params of the rule, or a rate, that differ from token to token: one update is made of a period."""
    flows = [flow for _, flow in rule.args] + ([rule.step] if rule.step is not None else [])
    for flow in b.behind(*flows):
        if flow.op in LASTING or (flow.op == "tensor" and flow.attr("learner") is not None):
            span = write.rate.span if write.rate is not None else write.spans.get("rule", write.span)
            text = f"`{flow.id}` differs from token to token; the rule of a learner of the loss is applied once a period"
            b.fail(codes.NotCompiledYet, text, span, "numbers, params and `age(self)` are the same for all of them")


def with_the_loss(graph: LevelGraph) -> LevelGraph:
    """The graph of a spec with a loss, in which learners of blocks minimise it."""
    asking = asks_for_loss(graph)
    if not asking or graph.loss is None:
        return graph
    learners = {m.id: replace(m, writes=tuple(replace(write, loss=str(graph.loss)) for write in m.writes)) for m in asking}
    flows = {id: flow for id, flow in graph.flows.items() if id != CALLER}
    return graph.with_(flows=flows, learners={**graph.learners, **learners})


def asks_for_loss(graph: LevelGraph) -> list[Learner]:
    """The learners that minimise the loss of a spec that uses this one as a block."""
    return [m for m in graph.learners.values() if any(write.loss == CALLER for write in m.writes)]


def has_no_loss(graph: LevelGraph) -> Iterator[Diagnostic]:
    """What a spec lacks whose learners minimise the loss of another: it cannot run by itself."""
    for m in asks_for_loss(graph)[:1]:
        text = f"`{m.id}` minimises the loss of the spec that uses it, and `{graph.name}` has no `loss`"
        yield codes.MissingPart(text, m.span, "add a top-level `loss:`, or use it as a block of a spec that has one")


def misplaced(graph: LevelGraph) -> Iterator[Diagnostic]:
    """What packed rows have no program for."""
    learning = [m for m in graph.learners.values() if is_own(m) and m.clock is not None and m.clock.unit == "token"]
    for m in graph.learners.values() if graph.starts is not None else ():
        learns = is_own(m) and m.clock is not None and m.clock.unit == "token"
        if learns and m.sharing == "sequence" and (other := next((o for o in learning if o.sharing != "sequence"), None)) is not None:
            text = f"`{m.id}` begins anew with each sequence of a row, and `{other.id}` goes on from one to the next: not compiled yet"
            yield codes.NotCompiledYet(text, m.span, "the same `scope` for all that learns from the loss")
        elif learns and m.remainder != "carry":
            text = f"`{m.id}` learns from the loss, and sequences may end anywhere in a row: `remainder: {m.remainder}` is not compiled yet"
            yield codes.NotCompiledYet(text, m.span, "`remainder: carry` goes on from one sequence of a row to the next")
        elif (learns or (m.selector is not None and m.backprop.tokens)) and document(graph) is None:
            text = f"rows are cut into segments for `{m.id}`, and where sequences start is not told by an input: not compiled yet"
            yield codes.NotCompiledYet(text, m.span, "`sequence: {starts: new(doc)}`, with `doc` an input")
