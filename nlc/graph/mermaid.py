"""The level graph in Mermaid, the drawings that code hosts render inside Markdown.

The same picture as the SVG: flows at the top, below them a subgraph for each frequency, fast above slow. The kind of an edge is its
label and its colour; what flows into a flow as an operand is not labelled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from nlc.graph.palette import COLORS, FILLS
from nlc.graph.picture import Box, Picture, inner_blocks

DOTTED = ("host", "owns", "tensor")


def to_mermaid(shown: Picture) -> str:
    """A picture as the text of a Mermaid flowchart."""
    return "".join(f"{line}\n" for line in _lines(shown))


def node_id(box: Box) -> str:
    """`learner_S`, `flow_q`: stable, one to one, and never a word of Mermaid such as `end`."""
    kind = "tensors" if box.kind == "tensors" else "learner" if box.lane is not None else "flow"
    return f"{kind}_{_word(box.id.removeprefix(kind).strip())}"


def quoted(text: str) -> str:
    """A label: everything that Mermaid, Markdown or HTML would read is written as a character code."""
    return f'"{re.sub(_READ, lambda found: f"#{ord(found.group())};", text)}"'.replace("\n", "<br/>")


_READ = r'["#&<>`\\|*~]'


def _word(text: str) -> str:
    """Letters and digits as they are, `__` for an underscore, `_2e_` for a point: no two texts become one word."""
    return re.sub(r"[^A-Za-z0-9]", lambda found: "__" if found.group() == "_" else f"_{ord(found.group()):x}_", text)


def _lines(shown: Picture) -> Iterator[str]:
    yield f"---\ntitle: {quoted(shown.name)}\n---"
    yield "flowchart TB"
    if shown.has_flows:
        yield from _indented(_subgraph("lane_flows", "flows", _flows(shown)))
    for lane, label in shown.lanes.items():
        members = [_node(box) for box in shown.boxes.values() if box.lane == lane]
        yield from _indented(_subgraph(f"lane_{_word(label)}", label, members))
    yield from _indented(_edges(shown))
    yield from _indented(_styles(shown))


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def _subgraph(id: str, label: str, inside: Iterable[str]) -> Iterator[str]:
    yield f"subgraph {id}[{quoted(label)}]"
    yield from _indented(inside)
    yield "end"


def _flows(shown: Picture, block: str = "") -> Iterator[str]:
    """The flows of a block, then the blocks inside it."""
    yield from (_node(box) for box in shown.boxes.values() if box.lane is None and box.block == block)
    for scope in inner_blocks(shown, block):
        yield from _subgraph(f"block_{_word(scope)}", shown.block_label(scope), _flows(shown, scope))


def _node(box: Box) -> str:
    start, stop = ("([", "])") if box.kind == "input" else ("[", "]")
    text = "\n".join(box.lines)
    return f"{node_id(box)}{start}{quoted(text)}{stop}:::{box.kind}"


def _edges(shown: Picture) -> Iterator[str]:
    """The typed edges, then a link that nobody sees from lane to lane: it keeps them in order."""
    for link in shown.links:
        arrow = "-.->" if link.kind in DOTTED else "-->"
        label = "" if link.kind == "argument" else f"|{link.kind}|"
        yield f"{node_id(shown.boxes[link.source])} {arrow}{label} {node_id(shown.boxes[link.target])}"
    if len(shown.lanes) > 1:
        yield " ~~~ ".join(node_id(next(box for box in shown.boxes.values() if box.lane == lane)) for lane in shown.lanes)


def _styles(shown: Picture) -> Iterator[str]:
    for kind, (fill, stroke) in FILLS.items():
        if any(box.kind == kind for box in shown.boxes.values()):
            yield f"classDef {kind} fill:{fill},stroke:{stroke},color:#1c2128"
    for kind, color in COLORS.items():
        numbers = [str(i) for i, link in enumerate(shown.links) if link.kind == kind]
        if numbers:
            yield f"linkStyle {','.join(numbers)} stroke:{color}"
