"""What sessions must know of a spec: the levels that learn while tokens come, what each holds, and where losses come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nlc.graph.ir import LevelGraph
from nlc.graph.outer import Outer, loss_levels
from nlc.graph.segments import POSITION, carried, held
from nlc.graph.state import StateTensor


@dataclass(frozen=True)
class ServedLevel:
    """A learner of the loss: its period in tokens, the keys of its tensors, and of all that it holds.

    Where a sequence ends, one that `flushes` learns from the period that is open; one that is `endless` has no such end.
    """

    period: int
    tensors: tuple[str, ...]
    keys: tuple[str, ...]
    flushes: bool = False
    endless: bool = False


@dataclass(frozen=True)
class Served:
    """Levels by the ids of their learners; states by their keys; `asked`, whose next value is the label, and the output with its scores.

    `clock` is the state that counts the tokens up to the last boundary, where there is one.
    """

    levels: Mapping[str, ServedLevel]
    items: Mapping[str, StateTensor]
    asked: str | None
    scores: str | None
    clock: str | None


def served(graph: LevelGraph) -> Served:
    """Found in the level graph."""
    found = {level.owner.id: _level(graph, level) for level in loss_levels(graph)}
    items = {item.key: item for item in carried(graph)}
    clock = next((key for key in (POSITION, "position") if key in items and items[key].kind == "position"), None)
    return Served(found, items, *_scored(graph), clock)


def _level(graph: LevelGraph, level: Outer) -> ServedLevel:
    kind, lasts = level.owner.remainder, level.owner.sharing != "sequence"
    return ServedLevel(level.steps, level.owner.owns, held(graph, level), kind == "flush", lasts and kind == "carry")


def _scored(graph: LevelGraph) -> tuple[str | None, str | None]:
    """The input and the output of `cross_entropy(output, next(input))`; nothing where the loss is another one."""
    loss = graph.flows[graph.loss] if graph.loss is not None else None
    if loss is None or loss.op != "cross_entropy" or graph.starts is not None:
        return None, None
    label, scores = graph.flows[loss.args[1]], graph.flows[loss.args[0]]
    output = next((name for name, id in graph.outputs if id == scores.id), None)
    if label.op != "next" or output is None or len(scores.axes) != 1:
        return None, None
    return label.args[0], output
