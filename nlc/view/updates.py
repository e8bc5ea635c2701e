"""Which learner updates at which token: a row for each learner, a column for each token, and one for the step."""

from __future__ import annotations

from nlc.graph.ir import Clock, LevelGraph
from nlc.graph.order import levels
from nlc.graph.picture import Picture
from nlc.graph.state import folding
from nlc.view.html import tag, text
from nlc.view.marks import Marks

LEAST, MOST = 32, 1024
"""How many tokens are drawn: two of the longest periods, within these bounds."""
WIDTH, ROW, LABEL, STEP = 760.0, 22.0, 330.0, 46.0


def updates(graph: LevelGraph, shown: Picture, marks: Marks) -> str:
    """The raster as SVG.

    With a period above 1 a learner writes at each token, and at the begin of a period its anchor is renewed; one that folds a period
    is updated at its last token only.
    """
    clocks = {id: level.clock for level in levels(graph) if level.clock is not None for id in level.learners}
    periods = [clock.period for clock in clocks.values() if clock.unit == "token"]
    tokens = min(max(LEAST, 2 * max(periods, default=1)), MOST)
    rows: list[str] = []
    for level in levels(graph):
        for id in level.learners:
            if id in clocks and f"learner {id}" in shown.boxes:
                rows.append(_row(graph, shown, marks, id, level.id, clocks[id], tokens, len(rows)))
    height = ROW * (len(rows) + 2)
    head = _axis(tokens, ROW * (len(rows) + 1), any(clock.unit == "step" for clock in clocks.values()))
    size = {"width": f"{LABEL + WIDTH + STEP:.0f}", "height": f"{height:.0f}"}
    return tag("svg", *rows, head, class_="raster", role="img", aria_label="updates over tokens", **size)


def _row(graph: LevelGraph, shown: Picture, marks: Marks, id: str, level: str, clock: Clock, tokens: int, number: int) -> str:
    learner = graph.learners[id]
    count = sum(member in graph.learners for member in shown.members[f"learner {id}"])
    y = ROW * number + 4
    label = f"{id}{f' x {count}' if count > 1 else ''}, level {level}, every {clock}"
    parts = [tag("title", text(label)), tag("text", text(label), x=4, y=f"{y + 12:.0f}")]
    if clock.unit == "step":
        parts.append(_block("turn", LABEL + WIDTH + 8, y, STEP - 16))
    else:
        step = WIDTH / tokens
        ends = folding(graph, learner) is not None
        if not ends:
            parts.append(_block("write", LABEL, y, WIDTH))
        if step >= 6:
            lines = "".join(f"M{LABEL + t * step:.1f} {y:.0f}v14" for t in range(1, tokens))
            parts.append(tag("path", d=lines, class_="grid"))
        width = max(2.0, step - 1) if clock.period > 1 else 0.0
        if width:
            parts += [_block("turn", LABEL + t * step, y, width) for t in range(clock.period - 1 if ends else 0, tokens, clock.period)]
    return tag("g", *parts, data_node=id, **marks.at(learner.span))


def _block(name: str, x: float, y: float, width: float) -> str:
    return tag("rect", class_=name, x=f"{x:.1f}", y=f"{y:.1f}", width=f"{width:.1f}", height=14)


def _axis(tokens: int, y: float, has_steps: bool) -> str:
    """Numbers below the columns."""
    every = max(1, tokens // 8)
    marks = [(LABEL + t * WIDTH / tokens, str(t)) for t in range(0, tokens, every)]
    marks += [(LABEL + WIDTH + 8, "step")] if has_steps else []
    return tag("g", tag("text", "token", x=4, y=f"{y:.0f}"), *(tag("text", name, x=f"{x:.1f}", y=f"{y:.0f}") for x, name in marks))
