"""What a drawing of the level graph shows: named flows, learners by frequency, copies of a block once.

Flows without a name are seen through: an edge between two things that are shown stands for every path between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import networkx as nx

from nlc.graph.edges import learners_of, rate_of
from nlc.graph.equations import local
from nlc.graph.identity import prepared
from nlc.graph.ir import Flow, Learner, LevelGraph, show_axes, size_of
from nlc.graph.linear import LinearForm, NotLinear
from nlc.graph.order import effective_clock, levels
from nlc.graph.select import Selection, select
from nlc.graph.text import place, unit_of
from nlc.language.expression import to_text as expression_text

LARGEST = 500
"""Boxes or edges of a picture that shows every copy of a block."""


@dataclass(frozen=True)
class Box:
    """Something drawn. `kind` is input, flow, output, loss, memory, rule, outer or tensors; `lane` is None for flows."""

    id: str
    kind: str
    lines: tuple[str, ...]
    title: str
    lane: tuple[int, int] | None = None
    block: str = ""


@dataclass(frozen=True)
class Link:
    source: str
    target: str
    kind: str

    @property
    def title(self) -> str:
        return f"{self.source.removeprefix('learner ')} -> {self.target.removeprefix('learner ')}: {self.kind}"


@dataclass
class Picture:
    """`lanes` are (sort key, label), highest frequency first; `blocks` the number of copies of each block with flows.

    `members` are the nodes that a box stands for: itself, its copies, and the unnamed parts of its expression.
    `expanded`: every copy of a block is drawn, each as a block of its own.
    """

    name: str
    expanded: bool = False
    boxes: dict[str, Box] = field(default_factory=dict)
    links: dict[Link, None] = field(default_factory=dict)
    lanes: dict[tuple[int, int], str] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)
    members: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def block_name(self, scope: str) -> str:
        """`h` of `h.0` where it stands for all copies, `h.0` where each is drawn."""
        return scope if self.expanded else ".".join(part for part in scope.split(".") if not part.isdigit())

    def block_label(self, scope: str) -> str:
        """`h x 5`: the name, and how many copies it stands for."""
        count = self.blocks.get(scope, 1)
        return f"{self.block_name(scope)}{f' x {count}' if count > 1 else ''}"

    @property
    def has_flows(self) -> bool:
        return any(box.lane is None for box in self.boxes.values())

    @property
    def is_large(self) -> bool:
        """Too large to be read, and for what draws it: Mermaid refuses more than 500 edges."""
        return max(len(self.boxes), len(self.links)) > LARGEST


def picture(graph: LevelGraph, expand: bool = False, only: Iterable[str] = ()) -> Picture:
    """The graph after its passes, with everything in it that is worth a box; `only` are selections (nlc.graph.select) of it.

    Copies of a block are drawn once. `expand` draws each, unless that is too large; the picture says what it did.
    """
    graph = prepared(graph)
    part = select(graph, only) if only else None
    flat = _Collector(graph, part, expand=True).run() if expand else None
    return _Collector(graph, part).run() if flat is None or flat.is_large else flat


class _Collector:
    def __init__(self, graph: LevelGraph, part: Selection | None, expand: bool = False) -> None:
        self.graph, self.part = graph, part
        self.picture = Picture(graph.name, expand)
        self.level = {id: level.id for level in levels(graph) for id in level.learners}
        self.first: dict[str, str] = {}
        self.wanted: set[str] = set()
        self.roots = set(graph.roots())

    def run(self) -> Picture:
        graph, picture = self.graph, self.picture
        self._copies()
        if self.part is not None:
            self.wanted = set(map(self.rep, self.part.flows | self.part.learners))
        for flow in graph.flows.values():
            if self._is_shown(flow) and self._stands(flow.id):
                picture.boxes[flow.id] = self._flow(flow)
        for learner in graph.learners.values():
            if not learner.is_parameter and learner.joined is None and self._stands(learner.id):
                picture.boxes[f"learner {learner.id}"] = self._learner(learner)
        self._tensors()
        for flow in graph.flows.values():
            if self._is_shown(flow):
                self._into_flow(flow)
        for learner in graph.learners.values():
            if not learner.is_parameter and learner.joined is None:
                self._into_learner(learner)
        picture.lanes = dict(sorted(picture.lanes.items()))
        drawn = [f"{box.block}." for box in picture.boxes.values() if box.lane is None]
        picture.blocks = {at: n for at, n in picture.blocks.items() if any(block.startswith(f"{at}.") for block in drawn)}
        self._members()
        return picture

    # -- copies ---------------------------------------------------------------------------------------------------------

    def _copies(self) -> None:
        """Which block copies there are; the first of each run stands for all, or each for itself."""
        nodes: list[Flow | Learner] = [*self.graph.flows.values(), *self.graph.learners.values()]
        scopes = [scope for scope in dict.fromkeys(node.scope for node in nodes) if scope]
        for scope in scopes:
            first = ".".join("0" if part.isdigit() else part for part in scope.split("."))
            self.first[scope] = scope if self.picture.expanded else first
        for scope in scopes:
            if self.first[scope] == scope:
                self.picture.blocks[scope] = sum(self.first[other] == scope for other in scopes)

    def rep(self, id: str) -> str:
        """The node that stands for this one and its copies."""
        node: Flow | Learner | None = self.graph.flows.get(id) or self.graph.learners.get(id)
        scope = node.scope if node is not None else ""
        return f"{self.first[scope]}.{local(id, scope)}" if scope in self.first and id.startswith(scope) else id

    def _stands(self, id: str) -> bool:
        """True for a node that stands for itself and its copies, unless only others are wanted."""
        return self.rep(id) == id and (self.part is None or id in self.wanted)

    def _members(self) -> None:
        """The box of every node that has one: `q:conv` belongs to the flow `q`, a flow of a rule or an objective to the learner."""
        members: dict[str, list[str]] = {id: [] for id in self.picture.boxes}
        for flow in self.graph.flows.values():
            members.get(self._box_of(flow), []).append(flow.id)
        for learner in self.graph.learners.values():
            scope = self.first.get(learner.scope, learner.scope)
            box = f"tensors {scope}" if learner.is_parameter else f"learner {self.rep(learner.id)}"
            members.get(box, []).append(learner.id)
        self.picture.members = {box: tuple(ids) for box, ids in members.items()}

    def _box_of(self, flow: Flow) -> str:
        name = flow.id if self._is_shown(flow) else flow.id.partition(":")[0]
        if flow.host is None and self.rep(name) in self.picture.boxes:
            return self.rep(name)
        learner = flow.host or name
        while learner and f"learner {self.rep(learner)}" not in self.picture.boxes:
            learner = learner.rpartition(".")[0]
        return f"learner {self.rep(learner)}"

    # -- boxes ----------------------------------------------------------------------------------------------------------

    def _is_shown(self, flow: Flow) -> bool:
        name = local(flow.id, flow.scope)
        named = ":" not in name and "." not in name and flow.host is None and flow.op not in ("number", "pred")
        return named or flow.id in self.roots

    def _flow(self, flow: Flow) -> Box:
        outputs = [name for name, id in self.graph.outputs if id == flow.id]
        kind = "input" if flow.op == "input" else "loss" if flow.id == self.graph.loss else "output" if outputs else "flow"
        name = local(flow.id, flow.scope).partition(":")[0]
        name = outputs[0] if kind == "output" else name
        shape = show_axes(flow.axes) if flow.axes else "index" if flow.dtype == "index" else "[]"
        title = f"{flow.id} {shape} {flow.op}".rstrip()
        return Box(flow.id, kind, (name, shape), f"{title}\n{place(flow.span)}", block=flow.scope)

    def _learner(self, learner: Learner) -> Box:
        kind = "outer" if learner.selector is not None else "rule" if learner.host is not None else "memory"
        count = self.picture.blocks.get(learner.scope, 1)
        name = learner.id if kind != "memory" else local(learner.id, learner.scope)
        lines = [f"{local(name, learner.scope)}{f' x {count}' if count > 1 else ''}", self._place_in_time(learner, count)]
        lines += [self._store(learner), *_details(learner)]
        clock = effective_clock(self.graph, learner)
        assert clock is not None
        lane = ({"token": 0, "step": 1}[clock.unit], clock.period)
        self.picture.lanes[lane] = f"every {clock}".replace("every 1 ", "every ")
        return Box(f"learner {learner.id}", kind, tuple(lines), f"{learner.id}\n{place(learner.span)}", lane, learner.scope)

    def _place_in_time(self, learner: Learner, count: int) -> str:
        last = [id for id in self.level if self.rep(id) == learner.id][-1] if count > 1 else learner.id
        first, end = self.level[learner.id], self.level[last]
        return f"level {first}" if first == end else f"levels {first} .. {end}"

    def _store(self, learner: Learner) -> str:
        store = learner.store
        if learner.selector is not None:
            return f"owns {expression_text(learner.selector)}: {len(learner.owns)} tensors"
        if store.form == "any":
            return f"like its host's {show_axes(learner.axes)}" if size_of(learner.axes) > 0 else "like each tensor of its host"
        query = f"{show_axes(store.in_axes)} -> " if store.in_axes else ""
        per = f" per {show_axes(learner.per)}" if learner.per else ""
        return f"{query}{show_axes(store.out_axes)}{per}"

    def _tensors(self) -> None:
        """One box for the slow tensors of each block, and one for those outside."""
        groups: dict[str, list[Learner]] = {}
        for learner in self.graph.parameters:
            if self._stands(learner.id) and learner.is_parameter:
                groups.setdefault(learner.scope, []).append(learner)
        for scope, members in groups.items():
            count = self.picture.blocks.get(scope, 1)
            numbers = sum(size_of(m.axes) for m in members)
            what = f"{len(members)} tensors" if len(members) > 1 else members[0].id
            head = f"{what} of {self.picture.block_label(scope)}" if scope else what
            lines = (head, f"{numbers:,} numbers{' each' if count > 1 else ''}")
            title = "\n".join(f"{m.id} {show_axes(m.axes)} {place(m.span)}" for m in members)
            lane = (2, 0)
            self.picture.lanes[lane] = "never in context"
            self.picture.boxes[f"tensors {scope}"] = Box(f"tensors {scope}", "tensors", lines, title, lane, scope)

    # -- links ----------------------------------------------------------------------------------------------------------

    def _link(self, source: str, target: str, kind: str) -> None:
        """An edge between shown things; one from copy to copy of a block is not drawn where one stands for all."""
        boxes = self.picture.boxes
        ends = []
        for id in (source, target):
            prefix = "learner " if id.startswith("learner ") else ""
            ends.append(prefix + self.rep(id.removeprefix(prefix)) if not id.startswith("tensors ") else id)
        between = ("", "") if self.picture.expanded else (self._unit(source), self._unit(target))
        if (all(between) and between[0] != between[1]) or ends[0] == ends[1]:
            return
        if ends[0] in boxes and ends[1] in boxes:
            self.picture.links[Link(ends[0], ends[1], kind)] = None

    def _unit(self, id: str) -> str:
        return unit_of(id.removeprefix("learner ")) if not id.startswith("tensors ") else ""

    def _into_flow(self, flow: Flow) -> None:
        for source, kind in self._seen_from(flow.id, "argument", first=True):
            self._link(source, flow.id, kind)

    def _seen_from(self, id: str, kind: str, first: bool = False) -> Iterator[tuple[str, str]]:
        """What is shown behind a flow. Calls of memories are links from the memory; their queries go to it."""
        todo, seen = [id], set()
        while todo:
            at = todo.pop(0)
            if at in seen:
                continue
            seen.add(at)
            flow = self.graph.flows[at]
            if self._is_shown(flow) and not (first and at == id):
                yield at, kind
                continue
            memory = next((m for m in map(self.graph.learners.get, learners_of(flow)) if m is not None and not m.is_parameter), None)
            if memory is None:
                if flow.op not in ("position", "boundary") and learners_of(flow):
                    self._tensor_link(flow)
                todo.extend(flow.args)
            elif flow.op == "attend" or (flow.op in ("recall", "tensor") and flow.attr("state") != "at"):
                yield f"learner {memory.id}", "recall" if kind == "argument" else kind
                for source, _ in (pair for arg in flow.args[:1] for pair in self._seen_from(arg, "query")):
                    self._link(source, f"learner {memory.id}", "query")

    def _tensor_link(self, flow: Flow) -> None:
        if not flow.scope and f"tensors {flow.scope}" in self.picture.boxes:
            for shown in self._shown_after(flow.id):
                self._link("tensors ", shown, "tensor")

    def _shown_after(self, id: str) -> Iterator[str]:
        todo = [id]
        while todo:
            flow = self.graph.flows[todo.pop()]
            if self._is_shown(flow):
                yield flow.id
            else:
                todo.extend(self.graph.readers.get(flow.id, ()))

    def _into_learner(self, learner: Learner) -> None:
        here = f"learner {learner.id}"
        if learner.host is not None:
            self._link(here, f"learner {learner.host}", "host")
        for id in learner.owns:
            self._link(here, f"tensors {self.graph.learners[id].scope}", "owns")
        if learner.selector is not None:
            self._link(str(self.graph.loss), here, "gradient")
            return
        needs = [(kind, id) for kind, id in self.graph.needs_of(learner) if kind in ("key", "value", "keep")]
        rate = rate_of(self.graph, learner)
        needs += [("rate", rate)] if rate is not None else [("rule", str(learner.rule.step))] if learner.rule.step else []
        for kind, id in needs:
            for source, seen_kind in self._seen_from(id, kind):
                inner = self.graph.learners.get(source.removeprefix("learner "))
                if inner is None or inner.host != learner.id:  # a learner of the rule is joined to its host already
                    self._link(source, here, seen_kind)
        form = learner.linear
        if isinstance(form, LinearForm):
            for write in form.writes:
                if write.probe is not None and write.probe != write.key:
                    for source, _ in self._seen_from(write.probe, "probe"):
                        self._link(source, here, "probe")


def _details(learner: Learner) -> list[str]:
    form, run = learner.linear, learner.execution
    lines = []
    if learner.rule.call is not None:
        lines.append(f"rule {expression_text(learner.rule.call)}")
    if isinstance(form, NotLinear):
        lines.append(f"{form.kind} recurrence")
    elif isinstance(form, LinearForm):
        chunks = f", {run.form}{f' {run.chunk}' if run.form == 'chunkwise' else ''}" if run is not None else ""
        lines.append(f"{form.kind}, n = {form.n}{chunks}")
    return lines


def columns(shown: Picture) -> dict[str, int]:
    """The column of each flow: behind everything it is made from."""
    flows: nx.DiGraph[str] = nx.DiGraph()
    flows.add_nodes_from(id for id, box in shown.boxes.items() if box.lane is None)
    through: nx.DiGraph[str] = nx.DiGraph(
        [(link.source, link.target) for link in shown.links if link.kind not in ("tensor", "owns", "gradient")]
    )
    for link in shown.links:
        if link.kind == "argument":
            flows.add_edge(link.source, link.target)
        elif link.kind == "recall" and link.target in flows:
            for source in nx.ancestors(through, link.source) & set(flows):
                if not flows.has_edge(source, link.target) and source != link.target:
                    flows.add_edge(source, link.target)
    while not nx.is_directed_acyclic_graph(flows):
        flows.remove_edge(*nx.find_cycle(flows)[-1][:2])
    return {id: i for i, generation in enumerate(nx.topological_generations(flows)) for id in generation}


def rows(shown: Picture) -> list[list[str]]:
    """What stands side by side in a picture that runs from top to bottom: columns of flows, then the lanes of learners."""
    found: dict[tuple[int, ...], list[str]] = {}
    column = columns(shown)
    for id, box in shown.boxes.items():
        found.setdefault((0, column[id]) if box.lane is None else (1, *box.lane), []).append(id)
    return [found[key] for key in sorted(found)]


def inner_blocks(shown: Picture, block: str = "") -> list[str]:
    """The blocks that stand directly inside a block, or in none."""
    inside = [scope for scope in shown.blocks if scope != block and (not block or scope.startswith(f"{block}."))]
    return [scope for scope in inside if not any(scope.startswith(f"{other}.") for other in inside)]


__all__ = ["LARGEST", "Box", "Link", "Picture", "columns", "inner_blocks", "picture", "rows"]
