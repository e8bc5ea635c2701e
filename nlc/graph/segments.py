"""Streams in which learners of the loss learn: where they are cut into segments, and what is carried from call to call.

Between two boundaries of their periods no such learner changes, so a segment is run as a whole, and one backward pass over it has the
gradients of all of them. The loss of a token is known with the next one: what has no label yet is carried as it came, with the states that
its segment began with, and is run again once it has.
"""

from __future__ import annotations

from collections.abc import Iterator

from nlc.graph.ir import Axis, Init, LevelGraph
from nlc.graph.outer import Outer, loss_levels, owners, states_of
from nlc.graph.state import CONTEXT, StateTensor, state_tensors

PENDING = "pending:"
"""Before the name of an input: its rows since the last boundary."""
START = "start:"
"""Before the key of a state: what it was at the last boundary."""
POSITION = "pending:position"
"""The token of the stream at the last boundary."""
COUNT = "pending:count"
"""The tokens since the last boundary, where rows differ in it."""
LABELS = "pending:next"
"""The labels of the tokens since the last boundary; `UNKNOWN` where the next token is the label, below 0 where there is none."""
UNKNOWN = -2


def periods(graph: LevelGraph) -> tuple[int, ...]:
    """The periods whose multiples cut a stream into segments, in tokens; none where it is run as a whole.

    A multiple of another adds no boundary.
    """
    found = {level.steps for level in loss_levels(graph)} or {truncation(graph)} - {0}
    return tuple(sorted(n for n in found if not any(n % other == 0 for other in found - {n})))


def truncation(graph: LevelGraph) -> int:
    """Before every so many tokens the outer gradient passes by no state but those of the learners of the loss; 0: it always does."""
    return next((each.owner.backprop.tokens for each in owners(graph)), 0)


def is_segmented(graph: LevelGraph) -> bool:
    """Do learners of the loss learn while tokens come?"""
    return bool(loss_levels(graph))


def is_apart(graph: LevelGraph) -> bool:
    """Do learners of the loss begin anew with each of several sequences of a row, which have clocks of their own then?"""
    return graph.starts is not None and any(level.owner.sharing == "sequence" for level in loss_levels(graph))


def needs_sum(graph: LevelGraph, level: Outer) -> bool:
    """Does a boundary fall inside its periods, so that gradients are carried past it?"""
    return any(period % level.steps for period in periods(graph))


def restarts(graph: LevelGraph, level: Outer) -> int:
    """Every so many tokens a learner of the loss begins anew; 0 for never."""
    flow = graph.learners[level.owner.owns[0]].reset
    return int(graph.flows[flow].attr("period")) if flow is not None else 0


def sum_of(level: Outer, name: str) -> str:
    """The key of the gradients of a tensor, added over the period so far."""
    return f"{level.owner.id}.sum.{name}"


def gram_of(level: Outer, name: str) -> str:
    """The key of x x^T of the inputs of a tensor, added over the period so far."""
    return f"{level.owner.id}.gram.{name}"


def has_ends(graph: LevelGraph) -> bool:
    """Does a learner of the loss say what becomes of an open period where a sequence ends?"""
    return any(level.owner.remainder != "carry" for level in loss_levels(graph))


def ages(level: Outer) -> tuple[str, ...]:
    """The key of how many updates a learner has made since it began, where the position in the sequence does not tell."""
    return (f"{level.owner.id}.age",) if level.owner.remainder != "carry" else ()


def carried(graph: LevelGraph) -> tuple[StateTensor, ...]:
    """All that a compiled spec carries from call to call."""
    inside = state_tensors(graph)
    return (*inside, *_of_levels(graph), *_pending(graph, inside)) if is_segmented(graph) else inside


def _of_levels(graph: LevelGraph) -> Iterator[StateTensor]:
    """What learners of the loss hold beside their tensors."""
    for level in loss_levels(graph):
        shared = level.owner.sharing == "shared"
        for id, name in level.names.items() if needs_sum(graph, level) else ():
            yield StateTensor(sum_of(level, name), graph.learners[id].axes, "sum", level.owner.id, shared=shared)
        for id, _ in graph.rows if level.reads_rows and needs_sum(graph, level) else ():
            if id in level.names:
                inner = graph.learners[id].store.in_axes
                yield StateTensor(gram_of(level, level.names[id]), (*inner, *inner), "sum", level.owner.id, shared=shared)
        yield from (StateTensor(age, (), "position", level.owner.id) for age in ages(level))
        for state in states_of(level):
            axes = tuple(Axis(str(size), size) for size in state.shape)
            yield StateTensor(state.key, axes, "rule", state.learner, state.init, shared=shared, seed=state.seed)


def _pending(graph: LevelGraph, inside: tuple[StateTensor, ...]) -> Iterator[StateTensor]:
    """The tokens since the last boundary, and the states there."""
    yield from (StateTensor(key, (), "place") for key in (POSITION, COUNT) if is_apart(graph))
    yield from (StateTensor(key, (), "position") for key in (POSITION,) if not is_apart(graph))
    for name in graph.inputs:
        flow = graph.flows[name]
        yield StateTensor(f"{PENDING}{name}", (CONTEXT, *flow.axes), "tokens" if flow.dtype == "index" else "context")
    if any(flow.op == "next" for flow in graph.flows.values()):
        yield StateTensor(LABELS, (CONTEXT,), "tokens")
    for item in inside:
        if item.kind != "owned":
            yield StateTensor(f"{START}{item.key}", item.axes, item.kind, item.learner, item.init)


def held(graph: LevelGraph, level: Outer) -> tuple[str, ...]:
    """The keys of all that a learner of the loss holds: its tensors, what they have gathered, the states of its rule."""
    mine = {level.owner.id, *level.owner.owns, *(m.id for m in level.inner)}
    return tuple(item.key for item in (*state_tensors(graph), *_of_levels(graph)) if item.learner in mine and item.kind != "position")


def lasts(graph: LevelGraph, level: Outer) -> tuple[str, ...]:
    """The keys of what a learner holds beyond a sequence: all but what it has gathered in an open period."""
    gathered = {item.key for item in _of_levels(graph) if item.kind == "sum"}
    return (*(key for key in held(graph, level) if key not in gathered), *ages(level))


def pending(graph: LevelGraph) -> frozenset[str]:
    """The keys of what is kept of the tokens since the last boundary, and of the states there."""
    return frozenset(item.key for item in _pending(graph, state_tensors(graph)))


def begun_as(graph: LevelGraph, id: str) -> Iterator[str]:
    """The tensors whose values a tensor begins with, one after the other: that of another learner, which may begin as a third."""
    while (of := graph.learners[id].init.of) is not None:
        yield of
        id = of


def first_owner(graph: LevelGraph, id: str) -> str:
    """The tensor whose first value a tensor begins with: its own, or another's."""
    return [id, *begun_as(graph, id)][-1]


def first_of(graph: LevelGraph, id: str) -> Init:
    """What a tensor of a learner of the loss begins with."""
    return graph.learners[first_owner(graph, id)].init
