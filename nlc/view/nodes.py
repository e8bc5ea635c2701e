"""The list of all nodes, which is also the index of the page: every box and line is found from here, and the costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nlc.graph.explain import alike, bytes_text, learner_lines, named
from nlc.graph.ir import Flow, Learner, LevelGraph
from nlc.graph.order import levels
from nlc.graph.picture import Picture
from nlc.graph.text import operation, place, type_of
from nlc.view.html import attributes, tag, text
from nlc.view.marks import Marks

COSTS = {
    "multiply_adds_per_token": "multiply-adds a token",
    "state_bytes_per_sequence": "state bytes a sequence",
    "parameters": "parameters",
    "optimizer_state_bytes": "optimizer state bytes",
}
Explanation = Mapping[str, Any]


def node_list(graph: LevelGraph, collapsed: Picture, whole: Picture, explanation: Explanation, marks: Marks) -> str:
    """Learners by level, then flows, as one list; copies of a block can be hidden."""
    known = {learner["id"]: learner for learner in explanation["learners"]}
    boxes = _box_of(collapsed), _box_of(whole)
    groups = []
    for level in levels(graph):
        members = (_learner(graph.learners[id], known[id], boxes, marks) for id in level.learners)
        groups.append(_group(f"level {level.id}" + (f", every {level.clock}" if level.clock else ""), members))
    flows = (_flow(flow, boxes, marks) for flow in graph.flows.values() if flow.op != "number")
    return "".join([*groups, _group("flows", flows)])


def box_marks(shown: Picture, graph: LevelGraph, explanation: Explanation, marks: Marks) -> dict[str, str]:
    """The attributes of each box of a picture: its node, its place, what its learners cost."""
    known = {learner["id"]: learner for learner in explanation["learners"]}
    found = {}
    for id, members in shown.members.items():
        node = id.removeprefix("learner ") if not id.startswith("tensors ") else members[0]
        span = (graph.flows.get(node) or graph.learners[node]).span
        costs = [sum(known[m][key] for m in members if m in known) for key in COSTS]
        given = {"data_box": id, "data_node": node, "data_costs": " ".join(map(str, costs))}
        found[id] = attributes({**given, **({} if id.startswith("tensors ") else marks.at(span))})
    return found


def cost_table(explanation: Explanation) -> str:
    """A row for each learner, copies of a block in one; bars show the share of the whole."""
    totals = [explanation["totals"].get(key, 0) for key in ("multiply_adds_per_token", "state_bytes_per_sequence", "parameters")]
    totals.append(explanation["totals"]["optimizer_state_bytes"])
    head = tag("tr", *(tag("th", text(name), scope="col") for name in ("learner", "level", "class", "form", *COSTS.values())))
    rows = []
    for copies in alike(explanation):
        sums = [sum(m[key] for m in copies) for key in COSTS]
        m = copies[0]
        words = (m["level"], m["class"] or m["kind"], m["form"] or "")
        cells = [tag("th", text(named(copies)), scope="row"), *(tag("td", text(word)) for word in words)]
        cells += [_share(n, total, "bytes" in key) for n, total, key in zip(sums, totals, COSTS, strict=True)]
        rows.append(tag("tr", *cells, data_node=m["id"], tabindex=0))
    last = [tag("th", "in all", scope="row"), tag("td", colspan=3)]
    last += [tag("td", text(_number(n, "bytes" in key))) for n, key in zip(totals, COSTS, strict=True)]
    return tag("table", tag("thead", head), tag("tbody", *rows), tag("tfoot", tag("tr", *last)), class_="costs")


def _share(count: int, total: int, is_bytes: bool) -> str:
    if not count:
        return tag("td")
    bar = tag("meter", f"{count / max(total, 1):.0%}", value=count, max=max(total, 1), aria_hidden="true")
    return tag("td", text(_number(count, is_bytes)), bar)


def _number(count: int, is_bytes: bool) -> str:
    return bytes_text(count) if is_bytes else f"{count:,}"


def _group(name: str, members: Iterator[str]) -> str:
    return tag("ul", tag("li", text(name), role="presentation", class_="head"), *members, role="group", aria_label=name)


Boxes = tuple[dict[str, str], dict[str, str]]


def _box_of(shown: Picture) -> dict[str, str]:
    return {member: box for box, members in shown.members.items() for member in members}


def _learner(learner: Learner, known: Mapping[str, Any], boxes: Boxes, marks: Marks) -> str:
    about = tag("template", _about(list(learner_lines([dict(known)]))))
    return _node(known["kind"], str(known["class"] or ""), about, boxes, marks, learner)


def _about(lines: list[str]) -> str:
    """The explanation of a learner, its two columns as a list of terms."""
    head, *rows = lines
    terms = (tag("dt", text(row[2:16].strip())) + tag("dd", text(row[17:])) for row in rows)
    return tag("p", text(head)) + tag("dl", *terms)


def _flow(flow: Flow, boxes: Boxes, marks: Marks) -> str:
    return _node("flow", operation(flow) + type_of(flow), "", boxes, marks, flow)


def _node(kind: str, what: str, about: str, boxes: Boxes, marks: Marks, node: Flow | Learner) -> str:
    copy = any(part.isdigit() and part != "0" for part in node.scope.split("."))
    given = {
        "id": f"node-{node.id}".replace(" ", "-"),
        "class_": f"{kind} copy" if copy else kind,
        "data_node": node.id,
        "data_box": boxes[0].get(node.id),
        "data_whole": boxes[1].get(node.id),
        "data_place": place(node.span) or None,
        **marks.at(node.span),
    }
    return tag("li", tag("b", text(node.id)), tag("span", text(what)), about, role="option", **given)
