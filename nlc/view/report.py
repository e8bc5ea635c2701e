"""One HTML page of everything that the compiler made of a spec. It needs no server, no network and no other file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files

from nlc.graph.ir import LevelGraph
from nlc.graph.picture import picture
from nlc.graph.svg import to_svg
from nlc.graph.text import to_text
from nlc.passmanager import Stage, find_pass
from nlc.view.changes import changes, counts
from nlc.view.html import tag, text
from nlc.view.marks import Marks
from nlc.view.nodes import COSTS, Explanation, box_marks, cost_table, node_list
from nlc.view.source import kernel_lines, pane, plain_lines, python_lines, yaml_lines
from nlc.view.updates import updates


@dataclass(frozen=True)
class Made:
    """What a compilation made. `program` and `generated` are the reason where there are none; `kernels` are Inductor's files."""

    before: LevelGraph
    after: LevelGraph
    stages: tuple[Stage, ...]
    explanation: Explanation
    program: str
    generated: str
    kernels: Mapping[str, str] = field(default_factory=dict)


def report(made: Made) -> str:
    """The page, the same for the same input."""
    marks = Marks.of(made.before.file, made.before.sources)
    style, script = _asset("report.css"), _asset("report.js")
    slots = {
        "TITLE": text(made.after.name),
        "POLICY": f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'",
        "DOC": text(made.after.doc),
        "SUMMARY": _summary(made),
        "WARNINGS": "".join(tag("p", text(dropped["message"]), class_="warning") for dropped in made.explanation["dropped"]),
        "COSTS": "".join(tag("option", text(name), value=i) for i, name in enumerate(COSTS.values())),
        **_graph(made, marks),
        "PANES": _panes(made, marks),
        **_passes(made, marks),
        "TABLE": cost_table(made.explanation),
        "STYLE": style,
        "SCRIPT": script,
    }
    head, *parts = _asset("report.html").split("{{")
    return head + "".join(slots[name] + rest for name, _, rest in (part.partition("}}") for part in parts))


def _asset(name: str) -> str:
    return (files("nlc.view") / name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    """The one style and the one script that a browser may use."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _summary(made: Made) -> str:
    totals, explained = made.explanation["totals"], made.explanation
    facts = (
        (len(explained["levels"]), "level"),
        (len(explained["learners"]), "learner"),
        (len(made.after.flows), "flow"),
        (totals["parameters"], "parameter"),
    )
    items = [tag("li", tag("b", f"{count:,}"), f" {noun}{'' if count == 1 else 's'}") for count, noun in facts]
    return "".join(items) + tag("li", tag("b", f"{totals['multiply_adds_per_token']:,}"), " multiply-adds a token")


def _graph(made: Made, marks: Marks) -> dict[str, str]:
    """The picture twice, copies of blocks once and all of them; the list of nodes; the raster, whose rows are those of the first."""
    collapsed, whole = picture(made.after), picture(made.after, expand=True)
    has_copies = len(whole.boxes) > len(collapsed.boxes)
    return {
        "COLLAPSED": to_svg(collapsed, box_marks(collapsed, made.after, made.explanation, marks), "c-"),
        "WHOLE": to_svg(whole, box_marks(whole, made.after, made.explanation, marks), "w-") if has_copies else "",
        "COPIES": "" if has_copies else "hidden",
        "NODES": node_list(made.after, collapsed, whole, made.explanation, marks),
        "UPDATES": updates(made.after, collapsed, marks),
    }


def _panes(made: Made, marks: Marks) -> str:
    yaml = "".join(yaml_lines(marks, file, made.before.sources[file]) for file in marks.files)
    panes = [
        pane("yaml", "YAML", yaml),
        pane("graph", "level graph", plain_lines(marks, to_text(made.after), "g")),
        pane("program", "program", plain_lines(marks, made.program, "p")),
        pane("source", "generated code", python_lines(marks, made.generated)),
    ]
    if made.kernels:
        kernels = "".join(
            tag("div", text(name), class_="file", role="presentation") + kernel_lines(marks, code, f"k{i}-")
            for i, (name, code) in enumerate(made.kernels.items())
        )
        panes.append(pane("kernels", "Inductor", kernels))
    return "".join(panes)


def _passes(made: Made, marks: Marks) -> dict[str, str]:
    """The list of passes and, for each that changed the graph, what it changed."""
    before, items, shown = to_text(made.before), [], []
    for stage in made.stages:
        if stage.changed:
            after = to_text(stage.graph)
            gone, come = counts(before, after)
            what, body = f"-{gone} +{come}", changes(before, after, marks)
            before = after
        else:
            what, body = "unchanged", tag("p", "The pass left the graph as it was.")
        names = ("changed" if stage.changed else "same",)
        items.append(
            tag(
                "li",
                tag("b", text(stage.name)),
                tag("span", what),
                role="option",
                id=f"pass-{stage.name}",
                class_=names[0],
                data_pass=stage.name,
            )
        )
        head = tag("h3", text(stage.name), tag("small", text(f" {_purpose(stage.name)}")))
        shown.append(tag("section", head, body, id=f"change-{stage.name}", hidden=True))
    return {"PASSES": "".join(items), "CHANGES": "".join(shown)}


def _purpose(name: str) -> str:
    """The first line of a pass's docstring."""
    return (find_pass(name).__doc__ or "").strip().partition("\n")[0]
