"""Which levels update at which token: one token in words, or a raster with a row for each level and a column for each token.

Token t counts from the start of the stream; a period of n tokens begins where t mod n = 0. A level that writes inside its period
(`fold: each`) keeps its anchor until the next one begins; one that folds a period (`fold: sum`, `mean`, `last`) updates at its last
token only. Levels on the clock `step` update after a training step, never at a token.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from nlc.graph.edges import learners_of
from nlc.graph.ir import LevelGraph
from nlc.graph.order import DerivedLevel, effective_clock, levels
from nlc.graph.state import folding
from nlc.graph.text import by_copy

Json = dict[str, object]
RULER = 10
"""Columns from one number above the raster to the next."""


class Mark(enum.StrEnum):
    begins = "#"
    writes = "+"
    ends = "="
    rests = "."


MEANING = {
    Mark.begins: "a period begins",
    Mark.writes: "a write inside a period",
    Mark.ends: "the update at the end of a period",
    Mark.rests: "no update",
}


@dataclass(frozen=True)
class Ticked:
    """What a level does at one token; `read` are its learners that something reads there."""

    level: DerivedLevel
    mark: Mark
    read: tuple[str, ...]


def mark_of(graph: LevelGraph, level: DerivedLevel, token: int) -> Mark:
    if level.clock is None or level.clock.unit != "token":
        return Mark.rests
    ends = [folding(graph, graph.learners[id]) is not None for id in level.learners]
    if any(ends) and (token + 1) % level.clock.period == 0:
        return Mark.ends
    if all(ends):
        return Mark.rests
    if token % level.clock.period == 0:
        return Mark.begins
    return Mark.writes if any(graph.learners[id].fold.get("token") == "each" for id in level.learners) else Mark.rests


def at_token(graph: LevelGraph, token: int) -> tuple[Ticked, ...]:
    """Every level at this token, fast ones first."""
    clocks = {id: effective_clock(graph, learner) for id, learner in graph.learners.items() if learner.writes}
    ticking = [graph.learners[id] for id, clock in clocks.items() if clock is not None and clock.unit == "token"]
    needed = graph.upstream(*graph.roots(), *(flow for learner in ticking for _, flow in graph.needs_of(learner)))
    read = {id for flow in needed for id in learners_of(graph.flows[flow])}
    return tuple(Ticked(level, mark_of(graph, level, token), tuple(id for id in level.learners if id in read)) for level in levels(graph))


def at_token_text(graph: LevelGraph, token: int) -> str:
    return "".join(f"{line}\n" for line in _at_token(graph, token))


def _at_token(graph: LevelGraph, token: int) -> Iterator[str]:
    yield f"token {token} of {graph.name}, counted from 0"
    for ticked in at_token(graph, token):
        yield f"  level {_name(ticked.level)}: {_said(ticked, token)}"
        for line in by_copy(ticked.level.learners):
            yield f"    {line}"


def _said(ticked: Ticked, token: int) -> str:
    clock = ticked.level.clock
    if clock is None:
        return "only read" if ticked.read else "neither written nor read"
    if clock.unit != "token":
        return "updates after a training step, not at a token"
    if ticked.mark is Mark.begins:
        return "updates" if clock.period == 1 else f"updates; a period of {clock.period} tokens begins"
    if ticked.mark is Mark.ends:
        return f"updates; a period of {clock.period} tokens ends"
    place = f"token {token % clock.period + 1} of {clock.period} of its period"
    return f"writes inside its period, {place}" if ticked.mark is Mark.writes else f"only read, {place}"


def _name(level: DerivedLevel) -> str:
    return f"{level.id} every {level.clock}" if level.clock else level.id


def raster_text(graph: LevelGraph, tokens: int) -> str:
    """One row a level, one column a token, a ruler above and a legend of the marks that occur below."""
    found = levels(graph)
    width = max([len(_name(level)) for level in found], default=0)
    ruler = "".join(f"{start:<{RULER}}" for start in range(0, tokens, RULER))
    rows = {level: _row(graph, level, tokens) for level in found}
    lines = [f"{graph.name}, tokens 0 to {tokens - 1}", f"{'':{width}}  {ruler}"]
    lines += [f"{_name(level):{width}}  {row}" for level, row in rows.items()]
    lines.append(", ".join(f"{mark} {MEANING[mark]}" for mark in Mark if any(mark in row for row in rows.values())))
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _row(graph: LevelGraph, level: DerivedLevel, tokens: int) -> str:
    return "".join(mark_of(graph, level, token) for token in range(tokens))


def at_token_json(graph: LevelGraph, token: int) -> Json:
    found = [
        {**_level_json(ticked.level), "mark": ticked.mark.name, "learners": list(ticked.level.learners), "read": list(ticked.read)}
        for ticked in at_token(graph, token)
    ]
    return {"name": graph.name, "token": token, "levels": found}


def raster_json(graph: LevelGraph, tokens: int) -> Json:
    """`marks` holds a character for each token, as in the text."""
    rows = [{**_level_json(level), "marks": _row(graph, level, tokens)} for level in levels(graph)]
    return {"name": graph.name, "tokens": tokens, "legend": {str(mark): mark.name for mark in Mark}, "levels": rows}


def _level_json(level: DerivedLevel) -> Json:
    clock = level.clock
    return {"id": level.id, "clock": clock.unit if clock else None, "period": clock.period if clock else None}
