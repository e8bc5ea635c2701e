"""Where everything in the picture of a level graph stands, and the corners of every edge.

Flows stand in columns, each behind what it is made from; below them the learners in lanes of equal frequency. An edge runs
at right angles: down or up in the gutter behind a column, along a track of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nlc.graph.picture import Box, Link, Picture, columns

CHARACTER, LINE = 7.0, 15.0
"""Width and height that a character of 11 px takes at most in the fonts named below."""
PAD, GAP, TRACK, GUTTER, LABEL, MARGIN = 9.0, 14.0, 9.0, 22.0, 118.0, 16.0


Point = tuple[float, float]


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
    paths: dict[Link, list[Point]] = field(default_factory=dict)
    lanes: list[tuple[str, float, float]] = field(default_factory=list)
    frames: list[tuple[str, float, float, float, float]] = field(default_factory=list)


def lay_out(shown: Picture) -> Layout:
    return _Layouter(shown).run()


class _Layouter:
    def __init__(self, shown: Picture) -> None:
        self.shown, self.layout = shown, Layout()
        self.column = columns(shown)
        self.slots: dict[Link, int] = {}
        """The gutter of each edge: the number of the column it stands behind."""
        self.slot_x: dict[Link, float] = {}
        self.above = 0
        self.tracks: dict[Link, int] = {}
        """The edges above the flows, and how high each of them runs."""

    def run(self) -> Layout:
        self._assign()
        top = MARGIN + 30 + LINE + TRACK * self.above + 2 * GAP
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
                    self.tracks[link] = 0
            elif self._is_flow(link.target):
                self.slots[link] = self.column[link.target] - 1
        self._stack()

    def _stack(self) -> None:
        """Short edges low, those that are not above each other on one track: copies of a block need no more room than one."""
        taken: list[list[tuple[int, int]]] = []
        ends = {link: (self.column[link.source], self.column[link.target] - 1) for link in self.tracks}
        for link, (first, last) in sorted(ends.items(), key=lambda item: item[1][1] - item[1][0]):
            free = (i for i, others in enumerate(taken) if all(end < first or last < start for start, end in others))
            self.tracks[link] = next(free, len(taken))
            if self.tracks[link] == len(taken):
                taken.append([])
            taken[self.tracks[link]].append((first, last))
        self.above = len(taken)

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
        for scope in self.shown.blocks:
            inside = [p for p in self.layout.boxes.values() if p.box.block == scope or p.box.block.startswith(f"{scope}.")]
            if inside:
                depth = 4.0 * scope.count(".")
                left, right = min(p.x for p in inside) - GAP / 2 + depth, max(p.right for p in inside) + GAP / 2 - depth
                start = top - GAP / 2 - LINE - TRACK * self.above
                self.layout.frames.append((self.shown.block_label(scope), left, start + depth, right, bottom - GAP / 4))

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
                x, port = self.slot_x[link], stop if down else start
                turn = self._channel(learner, channels) if abs(port[0] - x) > 0.5 else 0.0
                inner = [(x, turn), (port[0], turn)] if turn else []
                corners = [start, (x, start[1]), *inner, stop] if down else [start, *inner[::-1], (x, stop[1]), stop]
            else:
                corners = self._between(link, start, stop, channels)
            self.layout.paths[link] = corners

    def _along(self, link: Link, start: Point, stop: Point, top: float) -> list[Point]:
        x = self.slot_x[link]
        if link not in self.tracks:
            return [start, (x, start[1]), (x, stop[1]), stop]
        y = top - GAP - TRACK * self.tracks[link]
        end = self.slot_x[Link(link.source, link.target, "track")]
        return [start, (x, start[1]), (x, y), (end, y), (end, stop[1]), stop]

    def _channel(self, learner: Placed, channels: dict[tuple[int, int] | None, int]) -> float:
        """The next free track above a lane."""
        channels[learner.box.lane] = channels.get(learner.box.lane, 0) + 1
        return learner.y - TRACK * channels[learner.box.lane]

    def _between(self, link: Link, start: Point, stop: Point, channels: dict[tuple[int, int] | None, int]) -> list[Point]:
        source, target = self.layout.boxes[link.source], self.layout.boxes[link.target]
        if source.box.lane != target.box.lane:
            y = self._channel(target, channels)
            return [start, (start[0], y), (stop[0], y), stop]
        key = (-1, hash(source.box.lane))
        channels[key] = channels.get(key, 0) + 1
        lowest = max(p.bottom for p in self.layout.boxes.values() if p.box.lane == source.box.lane)
        y = lowest + TRACK * channels[key]
        return [start, (start[0], y), (stop[0], y), stop]

    def _ports(self) -> dict[Link, tuple[Point, Point]]:
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
        found: dict[Link, list[Point]] = {link: [(0.0, 0.0), (0.0, 0.0)] for link in self.shown.links}
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
