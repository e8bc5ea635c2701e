"""The level graph as one SVG file that needs nothing else: no fonts, scripts or other files.

Flows run from left to right in the lane at the top; below it the learners stand in lanes of equal frequency, fast above slow
(as in the figures of Nested Learning); at the bottom are the tensors that only outer levels write. Edges are routed at right
angles: down or up in the gutter behind a column, along a track of their own. The panel is opaque, so that the picture can be
read on a light and on a dark page.

The picture in the README:  nlc graph specs/models/gated_delta_lm.yaml --as svg > docs/images/gated_delta_lm.svg
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.sax.saxutils import escape, quoteattr

from nlc.graph.ir import LevelGraph
from nlc.graph.picture import Box, Link, Picture, columns, picture

CHARACTER, LINE = 7.0, 15.0
"""Width and height that a character of 11 px takes at most in the fonts named below."""
ENTRY = 252.0
"""Width of an entry of the legend."""
PAD, GAP, TRACK, GUTTER, LABEL, MARGIN = 9.0, 14.0, 9.0, 22.0, 118.0, 16.0

COLORS = {
    "argument": "#8b949e",
    "recall": "#c0392b",
    "query": "#8e44ad",
    "key": "#1f6fb4",
    "probe": "#0e8f9b",
    "value": "#1e8449",
    "rate": "#d68910",
    "keep": "#935116",
    "rule": "#b03a7b",
    "gradient": "#2c3e50",
    "host": "#5d6d7e",
    "owns": "#5d6d7e",
    "tensor": "#a6acb3",
}
MEANINGS = {
    "argument": "flow to flow",
    "recall": "what a learner answers",
    "query": "what it is asked",
    "host": "part of its rule",
    "owns": "whose tensors it writes",
    "tensor": "slow tensors in use",
}
DASHED = {"host": "2 3", "owns": "6 4", "tensor": "1 3"}
FILLS = {
    "input": ("#e8f1fb", "#1f6fb4"),
    "flow": ("#ffffff", "#8b949e"),
    "output": ("#e6f4ea", "#1e8449"),
    "loss": ("#fdeceb", "#c0392b"),
    "memory": ("#fff4e0", "#d68910"),
    "rule": ("#fdf3f8", "#b03a7b"),
    "outer": ("#eef0f3", "#2c3e50"),
    "tensors": ("#f6f7f8", "#8b949e"),
}


@dataclass
class Placed:
    """A box with its place; x and y are the upper left corner."""

    box: Box
    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height

    @property
    def middle(self) -> float:
        return self.x + self.width / 2


@dataclass
class Layout:
    """Where everything is. `paths` are the corners of each edge."""

    width: float = 0.0
    height: float = 0.0
    boxes: dict[str, Placed] = field(default_factory=dict)
    paths: dict[Link, list[tuple[float, float]]] = field(default_factory=dict)
    lanes: list[tuple[str, float, float]] = field(default_factory=list)
    frames: list[tuple[str, float, float, float, float]] = field(default_factory=list)


def to_svg(graph: LevelGraph) -> str:
    """The picture of a graph; one before its passes is put through them first."""
    shown = picture(graph)
    return _Drawing(shown, lay_out(shown)).text()


# -- layout -------------------------------------------------------------------------------------------------------------


def lay_out(shown: Picture) -> Layout:
    return _Layouter(shown).run()


class _Layouter:
    def __init__(self, shown: Picture) -> None:
        self.shown, self.layout = shown, Layout()
        self.column = columns(shown)
        self.slots: dict[Link, int] = {}
        """The gutter of each edge: the number of the column it stands behind."""
        self.slot_x: dict[Link, float] = {}
        self.tracks: list[Link] = []

    def run(self) -> Layout:
        self._assign()
        top = MARGIN + 30 + LINE + TRACK * len(self.tracks) + 2 * GAP
        bottom = self._flows(top)
        self._frames(top, bottom)
        self.layout.lanes.append(("flows", MARGIN + 30, bottom + GAP))
        bottom = self._lanes(bottom + 2 * GAP)
        self._paths(top)
        self.layout.height = bottom
        return self.layout

    def _is_flow(self, id: str) -> bool:
        return self.shown.boxes[id].lane is None

    def _assign(self) -> None:
        """Give every edge that touches a flow its gutter, and the long ones a track above the flows."""
        for link in self.shown.links:
            if self._is_flow(link.source):
                self.slots[link] = self.column[link.source]
                if self._is_flow(link.target) and self.column[link.target] > self.column[link.source] + 1:
                    self.tracks.append(link)
            elif self._is_flow(link.target):
                self.slots[link] = self.column[link.target] - 1

    def _flows(self, top: float) -> float:
        """Columns of flows, gutters as wide as their edges need. Returns the lowest edge."""
        x = MARGIN + LABEL
        bottom = top
        for number in range(-1, max(self.column.values(), default=-1) + 1):
            members = [self.shown.boxes[id] for id, column in self.column.items() if column == number]
            width = max((_width(box) for box in members), default=0.0)
            y = top
            for box in members:
                self.layout.boxes[box.id] = Placed(box, x, y, width, _height(box))
                y += _height(box) + GAP
            bottom = max(bottom, y)
            x = self._gutter(number, x + width)
        self.layout.width = x + MARGIN
        return bottom

    def _gutter(self, number: int, x: float) -> float:
        inside = sorted((link for link, gutter in self.slots.items() if gutter == number), key=lambda link: not self._is_flow(link.source))
        entering = [link for link in self.tracks if self.column[link.target] - 1 == number]
        x += GUTTER if inside or entering else 0.0
        for i, link in enumerate([*inside, *entering]):
            if link in entering and link not in inside:
                self.slot_x[Link(link.source, link.target, "track")] = x + TRACK * i
            else:
                self.slot_x[link] = x + TRACK * i
        return x + TRACK * max(len(inside) + len(entering) - 1, 0) + (GUTTER if inside or entering else 0.0)

    def _frames(self, top: float, bottom: float) -> None:
        for scope, count in self.shown.blocks.items():
            inside = [p for p in self.layout.boxes.values() if p.box.block == scope or p.box.block.startswith(f"{scope}.")]
            if inside:
                name = ".".join(part for part in scope.split(".") if not part.isdigit())
                depth = 4.0 * scope.count(".")
                left, right = min(p.x for p in inside) - GAP / 2 + depth, max(p.right for p in inside) + GAP / 2 - depth
                start = top - GAP / 2 - LINE - TRACK * len(self.tracks)
                self.layout.frames.append((f"{name} x {count}" if count > 1 else name, left, start + depth, right, bottom - GAP / 4))

    # -- learners -------------------------------------------------------------------------------------------------------

    def _lanes(self, top: float) -> float:
        """One lane for each frequency; a box stands below the edges that reach it. Returns the lowest edge."""
        for lane, label in self.shown.lanes.items():
            members = [box for box in self.shown.boxes.values() if box.lane == lane]
            self._beside(sorted(members, key=lambda box: (self._wanted(box), box.kind == "outer")))
            placed = [self.layout.boxes[box.id] for box in members]
            y = top + max(LINE + 6, GAP + TRACK * self._turning(lane))
            for at in placed:
                at.y = y
            within = sum(self._lane(link.source) == lane == self._lane(link.target) for link in self.shown.links)
            bottom = max(at.bottom for at in placed) + GAP + TRACK * within
            self.layout.width = max(self.layout.width, max(at.right for at in placed) + 2 * MARGIN)
            self.layout.lanes.append((label, top, bottom))
            top = bottom + GAP
        return top

    def _beside(self, boxes: list[Box]) -> None:
        """Place boxes from left to right, each near where it wants to be; then draw in what sticks out at the right."""
        x = MARGIN + LABEL
        for box in boxes:
            x = max(x, self._wanted(box) - _width(box) / 2)
            self.layout.boxes[box.id] = Placed(box, x, 0.0, _width(box), _height(box))
            x += _width(box) + 2 * GAP
        limit = self.layout.width - MARGIN
        for at in (self.layout.boxes[box.id] for box in reversed(boxes)):
            at.x = max(min(at.x, limit - at.width), MARGIN + LABEL)
            limit = at.x - 2 * GAP
        x = MARGIN + LABEL
        for at in (self.layout.boxes[box.id] for box in boxes):
            at.x = max(at.x, x)
            x = at.right + 2 * GAP

    def _turning(self, lane: tuple[int, int]) -> int:
        """How many edges need a track above a lane: those that do not reach their box straight down."""
        count = 0
        for link in self.shown.links:
            for id, other in ((link.source, link.target), (link.target, link.source)):
                if self._lane(id) == lane and link in self.slot_x:
                    count += not _above(self.layout.boxes[id], self.slot_x[link])
                elif self._lane(id) == lane and id == link.target and self._lane(other) != lane:
                    count += 1
        return count

    def _lane(self, id: str) -> tuple[int, int] | None:
        return self.shown.boxes[id].lane

    def _wanted(self, box: Box) -> float:
        """The middle of the gutters of a box's edges; beside its host, or below its block, where it has none."""
        places = [x for link, x in self.slot_x.items() if box.id in (link.source, link.target)]
        if not places:
            hosts = [self.shown.boxes[link.target] for link in self.shown.links if link.source == box.id and link.kind == "host"]
            places = [self._wanted(host) - 1 for host in hosts]
        if not places and box.block:
            places = [at.middle for at in self.layout.boxes.values() if at.box.block == box.block and at.box.lane is None]
        return sum(places) / len(places) if places else 0.0

    # -- edges ----------------------------------------------------------------------------------------------------------

    def _paths(self, top: float) -> None:
        ends = self._ports()
        channels: dict[tuple[int, int] | None, int] = {}
        for link in self.shown.links:
            start, stop = ends[link]
            if self._is_flow(link.source) and self._is_flow(link.target):
                corners = self._along(link, start, stop, top)
            elif self._is_flow(link.source) or self._is_flow(link.target):
                down = self._is_flow(link.source)
                learner = self.layout.boxes[link.target if down else link.source]
                x, turn = self.slot_x[link], self._channel(learner, channels)
                port = stop if down else start
                inner = [(x, turn), (port[0], turn)] if abs(port[0] - x) > 0.5 else []
                corners = [start, (x, start[1]), *inner, stop] if down else [start, *inner[::-1], (x, stop[1]), stop]
            else:
                corners = self._between(link, start, stop, channels)
            self.layout.paths[link] = corners

    def _along(self, link: Link, start: tuple[float, float], stop: tuple[float, float], top: float) -> list[tuple[float, float]]:
        x = self.slot_x[link]
        if link not in self.tracks:
            return [start, (x, start[1]), (x, stop[1]), stop]
        y = top - GAP - TRACK * self.tracks.index(link)
        end = self.slot_x[Link(link.source, link.target, "track")]
        return [start, (x, start[1]), (x, y), (end, y), (end, stop[1]), stop]

    def _channel(self, learner: Placed, channels: dict[tuple[int, int] | None, int]) -> float:
        """The next free track above a lane."""
        channels[learner.box.lane] = channels.get(learner.box.lane, 0) + 1
        return learner.y - TRACK * channels[learner.box.lane]

    def _between(
        self, link: Link, start: tuple[float, float], stop: tuple[float, float], channels: dict[tuple[int, int] | None, int]
    ) -> list[tuple[float, float]]:
        source, target = self.layout.boxes[link.source], self.layout.boxes[link.target]
        if source.box.lane != target.box.lane:
            y = self._channel(target, channels)
            return [start, (start[0], y), (stop[0], y), stop]
        key = (-1, hash(source.box.lane))
        channels[key] = channels.get(key, 0) + 1
        lowest = max(p.bottom for p in self.layout.boxes.values() if p.box.lane == source.box.lane)
        y = lowest + TRACK * channels[key]
        return [start, (start[0], y), (stop[0], y), stop]

    def _ports(self) -> dict[Link, tuple[tuple[float, float], tuple[float, float]]]:
        """Where each edge leaves and enters its boxes: spread along a side, in the order of where they come from."""
        sides: dict[tuple[str, str], list[tuple[float, Link, int]]] = {}
        for link in self.shown.links:
            for end, id in enumerate((link.source, link.target)):
                other = self.shown.boxes[(link.target, link.source)[end]]
                side = self._side(self.shown.boxes[id], other, end)
                along = self.slot_x.get(link, self.layout.boxes[other.id].middle)
                if self._is_flow(id):
                    along = self.layout.boxes[other.id].y
                sides.setdefault((id, side), []).append((along, link, end))
        found: dict[Link, list[tuple[float, float]]] = {link: [(0.0, 0.0), (0.0, 0.0)] for link in self.shown.links}
        for (id, side), entries in sides.items():
            at = self.layout.boxes[id]
            for i, (along, link, end) in enumerate(sorted(entries, key=lambda entry: entry[0])):
                share = (i + 1) / (len(entries) + 1)
                if side in ("left", "right"):
                    found[link][end] = (at.x if side == "left" else at.right, at.y + share * at.height)
                else:
                    straight = link in self.slot_x and _above(at, along)
                    x = along if straight else at.x + share * at.width
                    found[link][end] = (x, at.y if side == "top" else at.bottom)
        return {link: (ends[0], ends[1]) for link, ends in found.items()}

    def _side(self, box: Box, other: Box, end: int) -> str:
        if box.lane is None:
            return "right" if end == 0 else "left"
        if other.lane is None or other.lane < box.lane:
            return "top"
        return "bottom"


def _above(at: Placed, x: float) -> bool:
    """Can an edge at x reach this box straight?"""
    return at.x + PAD < x < at.right - PAD


def _width(box: Box) -> float:
    return max(map(len, box.lines)) * CHARACTER + 2 * PAD


def _height(box: Box) -> float:
    return len(box.lines) * LINE + PAD


# -- drawing ------------------------------------------------------------------------------------------------------------


class _Drawing:
    def __init__(self, shown: Picture, layout: Layout) -> None:
        self.shown, self.layout = shown, layout
        self.kinds = [kind for kind in COLORS if any(link.kind == kind for link in shown.links)]

    def text(self) -> str:
        legend = list(self._legend())
        width, height = max(self.layout.width, 640.0), self.layout.height + 12 + LINE * (1 + (len(self.kinds) - 1) // self._across())
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
        head += (
            f'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="11" role="img" aria-label={quoteattr(self.shown.name)}>'
        )
        parts = [head, f"<title>{escape(self.shown.name)}</title>", "<defs>", *map(_marker, self.kinds), "</defs>"]
        parts.append(f'<rect width="{width:.0f}" height="{height:.0f}" rx="6" fill="#fbfbfc"/>')
        parts.append(_text(MARGIN, MARGIN + 12, self.shown.name, "#1c2128", "bold", 14))
        parts += [*self._lanes(width), *self._frames(), *self._edges(), *map(_box, self.layout.boxes.values()), *legend, "</svg>"]
        return "\n".join(parts) + "\n"

    def _lanes(self, width: float) -> Iterator[str]:
        for i, (label, top, bottom) in enumerate(self.layout.lanes):
            fill = "#f3f5f8" if i % 2 == 0 else "#eceff4"
            size = f'width="{width - MARGIN:.1f}" height="{bottom - top:.1f}"'
            yield f'<rect x="{MARGIN / 2:.1f}" y="{top:.1f}" {size} rx="4" fill="{fill}"/>'
            yield _text(MARGIN, top + LINE, label, "#57606a", "bold")

    def _frames(self) -> Iterator[str]:
        for name, left, top, right, bottom in self.layout.frames:
            size = f'width="{right - left:.1f}" height="{bottom - top:.1f}"'
            yield f'<rect x="{left:.1f}" y="{top:.1f}" {size} rx="6" fill="none" stroke="#b6bec9" stroke-dasharray="4 3"/>'
            yield _text(left + 4, top - 4, name, "#57606a", "bold")

    def _edges(self) -> Iterator[str]:
        for link, corners in self.layout.paths.items():
            dash = f' stroke-dasharray="{DASHED[link.kind]}"' if link.kind in DASHED else ""
            path = "M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in corners)
            style = f'fill="none" stroke="{COLORS[link.kind]}" stroke-width="1.4"{dash} stroke-linejoin="round"'
            title = f"{link.source.removeprefix('learner ')} -> {link.target.removeprefix('learner ')}: {link.kind}"
            yield f'<path d="{path}" {style} marker-end="url(#{link.kind})"><title>{escape(title)}</title></path>'

    def _across(self) -> int:
        """How many entries of the legend stand beside each other."""
        return max(1, int((max(self.layout.width, 640.0) - 2 * MARGIN) // ENTRY))

    def _legend(self) -> Iterator[str]:
        for i, kind in enumerate(self.kinds):
            x = MARGIN + ENTRY * (i % self._across())
            y = self.layout.height + 4 + LINE * (i // self._across())
            dash = f' stroke-dasharray="{DASHED[kind]}"' if kind in DASHED else ""
            yield f'<path d="M{x:.1f},{y - 4:.1f} h22" stroke="{COLORS[kind]}" stroke-width="1.4"{dash} marker-end="url(#{kind})"/>'
            meaning = f"{kind}: {MEANINGS[kind]}" if kind in MEANINGS else kind
            yield _text(x + 32, y, meaning, "#57606a")


def _marker(kind: str) -> str:
    shape = f'<path d="M0,0 L8,4 L0,8 z" fill="{COLORS[kind]}"/>'
    return f'<marker id="{kind}" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="6" markerHeight="6" orient="auto">{shape}</marker>'


def _box(at: Placed) -> str:
    fill, stroke = FILLS[at.box.kind]
    radius = 10 if at.box.kind == "input" else 3
    lines = [f"<g><title>{escape(at.box.title)}</title>"]
    size = f'width="{at.width:.1f}" height="{at.height:.1f}" rx="{radius}"'
    lines.append(f'<rect class="box" x="{at.x:.1f}" y="{at.y:.1f}" {size} fill="{fill}" stroke="{stroke}"/>')
    for i, text in enumerate(at.box.lines):
        lines.append(_text(at.x + PAD, at.y + LINE * (i + 1), text, "#1c2128" if i == 0 else "#57606a", "bold" if i == 0 else ""))
    return "".join([*lines, "</g>"])


def _text(x: float, y: float, text: str, color: str, weight: str = "", size: int = 0) -> str:
    more = (f' font-weight="{weight}"' if weight else "") + (f' font-size="{size}"' if size else "")
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}"{more}>{escape(text)}</text>'
