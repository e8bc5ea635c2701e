"""What a compiled spec carries from call to call: one flat set of keys, the same for every backend (docs/semantics.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nlc.graph.ir import Axes, Axis, Flow, Init, Learner, LevelGraph, Solve, moves_tensors

ZEROS = Init("zeros")
BEFORE = Init("constant", (-1.0,))
"""No index: what precedes the first token of a stream."""
CONTEXT = Axis("context", 0)
"""The axis of stored samples: none in a new stream, one more with each token."""


@dataclass(frozen=True)
class StateTensor:
    """`axes` come after the batch axis; `position` has neither where a row is one sequence, what is `shared` has no batch.

    `seed`: of the numbers that a first state is drawn with.
    """

    key: str
    axes: Axes
    kind: str
    learner: str | None = None
    init: Init = ZEROS
    shared: bool = False
    seed: int = 0

    @property
    def is_integer(self) -> bool:
        return self.kind in ("position", "place", "last", "tokens")

    @property
    def grows(self) -> bool:
        """Has it an axis of the tokens so far?"""
        return self.kind in ("context", "tokens")


def needs_anchor(graph: LevelGraph, learner: Learner) -> bool:
    """True when the state at the last boundary differs from the running state and something reads it."""
    if learner.clock is None or learner.clock.unit != "token" or learner.clock.period == 1 or not learner.writes or learner.selector:
        return False
    if learner.folds:  # within a period its state stays
        return False
    reads = any(f.attr("state") == "start" for f in graph.recalls.get(learner.id, ()))
    return reads or learner.at == "start"


def folding(graph: LevelGraph, learner: Learner) -> Learner | None:
    """The learner at whose period's end a learner, it or one of its rule, is updated; None where that is every token."""
    while not learner.folds and learner.host is not None:
        learner = graph.learners[learner.host]
    return learner if learner.folds else None


def needs_kept(graph: LevelGraph, learner: Learner) -> bool:
    """True when the keeps of a period multiply and are no constant number."""
    return keeps_add_up(learner) and learner.keep is not None and not is_constant(graph, learner.keep)


def keeps_add_up(learner: Learner) -> bool:
    """Does its keep act once for each token of a period, at the update at its end?"""
    return learner.folds in ("sum", "mean") and learner.folds_updates is None


def is_constant(graph: LevelGraph, flow: str) -> bool:
    """Is a flow made of numbers only?"""
    flows = [graph.flows[id] for id in graph.upstream(flow)]
    return all(bool(f.args) or f.op == "number" for f in flows) and all(f.attr("learner") is None for f in flows)


def needs_position(graph: LevelGraph) -> bool:
    """Does something depend on the place of a token? Cuts of the outer gradient of weights are counted by who drives the segments."""
    return any(f.op in ("position", "boundary") or _counts_tokens(graph, f) for f in graph.flows.values()) or any(
        m.folds is not None or needs_anchor(graph, m) or (m.backprop.tokens and not moves_tensors(graph.learners, m.id))
        for m in graph.learners.values()
    )


def _counts_tokens(graph: LevelGraph, flow: Flow) -> bool:
    """Is it the age of a learner in the rule of a memory?"""
    return flow.op == "age" and not moves_tensors(graph.learners, str(flow.attr("learner")))


def state_tensors(graph: LevelGraph) -> tuple[StateTensor, ...]:
    """The state of `forward` and `step`: memories, the learners of their rules, anchors, what a period has gathered, convolution
    tails, contexts, the position."""
    return tuple(part for item in running(graph) for part in parts_of(graph, item))


def parts_of(graph: LevelGraph, item: StateTensor) -> tuple[StateTensor, ...]:
    """A state as callers know it: of a learner that joins others, that of each of them."""
    learner = graph.learners[item.learner] if item.learner is not None else None
    if learner is None or not learner.joins:
        return (item,)
    end = item.key.removeprefix(learner.id)
    return tuple(replace(item, key=f"{id}{end}", axes=item.axes[1:], learner=id) for id in learner.joins)


def joined_states(graph: LevelGraph) -> dict[str, tuple[str, ...]]:
    """The states that a call puts side by side, by the key that it calls them together."""
    return {item.key: tuple(part.key for part in parts) for item in running(graph) if len(parts := parts_of(graph, item)) > 1}


def running(graph: LevelGraph) -> tuple[StateTensor, ...]:
    """The state as a call works with it: what learners hold that are joined stands side by side."""
    found: list[StateTensor] = []
    summed = {flow.attr("learner") for flow in graph.flows.values() if flow.op == "folded"}
    for learner in graph.learners.values():
        if learner.owner is not None:
            found.append(StateTensor(learner.id, learner.axes, "owned", learner.id, learner.init, learner.sharing == "shared"))
        elif learner.writes and not moves_tensors(graph.learners, learner.id):
            found.append(StateTensor(learner.id, learner.axes, "memory", learner.id, learner.init))
            if needs_anchor(graph, learner):
                found.append(StateTensor(f"{learner.id}.anchor", learner.axes, "anchor", learner.id, learner.init))
            if learner.id in summed:
                found.append(StateTensor(f"{learner.id}.sum", learner.axes, "sum", learner.id))
            if needs_kept(graph, learner):
                found.append(StateTensor(f"{learner.id}.kept", learner.axes, "kept", learner.id, learner.init))
    for flow in graph.flows.values():
        if flow.op == "conv" and flow.attr("width") > 1:
            tail = Axis("tail", flow.attr("width") - 1)
            found.append(StateTensor(flow.attr("learner"), (tail, *flow.axes), "tail"))
    for key, flow in {f.attr("tail"): f for f in graph.flows.values() if f.op == "delay"}.items():
        found.append(StateTensor(key, (Axis("tail", flow.attr("width") - 1), *flow.axes), "tail"))
    for learner in graph.learners.values():
        if learner.solve is not None:
            for number, context in enumerate(learner.solve.contexts):
                for key, axes in zip(context_keys(learner, number), sample_axes(graph, learner, context), strict=True):
                    if not context.once:
                        found.append(StateTensor(key, (CONTEXT, *axes), "context", learner.id))
        if learner.solve is not None and learner.reset is not None:
            found.append(StateTensor(f"{learner.id}.starts", (CONTEXT,), "context", learner.id))
    for key in dict.fromkeys(flow.attr("tail") for flow in graph.flows.values() if flow.op == "new"):
        found.append(StateTensor(key, (), "last", init=BEFORE))
    if needs_position(graph):
        found.append(StateTensor("position", (), "position" if graph.starts is None else "place"))
    return tuple(found)


def longest_window(solve: Solve) -> int:
    """The most tokens that a query sees samples of; 0 for all of them."""
    windows = [context.over for context in solve.contexts if not context.once]
    return max(windows) if all(windows) else 0


def sample_axes(graph: LevelGraph, learner: Learner, context: Solve) -> tuple[Axes, Axes]:
    """The axes of the key and of the value of a write: of its samples where it has several, of copies, and those within."""
    samples = (context.axis,) if context.axis is not None else ()
    inner = tuple(axis for axis in graph.flows[context.key].axes if axis not in samples + learner.per)
    return samples + learner.per + inner, samples + learner.per + learner.store.out_axes


def context_keys(learner: Learner, number: int) -> tuple[str, str]:
    """The states of the samples of one of its writes: `S.keys` and `S.values`, of a second write `S.keys.2`."""
    ending = f".{number + 1}" if number else ""
    return f"{learner.id}.keys{ending}", f"{learner.id}.values{ending}"
