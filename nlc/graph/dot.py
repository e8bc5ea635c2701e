"""The level graph in DOT, the language of Graphviz: `nlc graph SPEC --as dot | dot -Tsvg > graph.svg`.

The same picture as the SVG: flows in rows, each below what it is made from; under them a cluster for each frequency, fast above
slow. Rows are set by `rank`, not by the edges, because edges run both ways: a learner is asked by flows and answers flows. Ids are
those of the level graph, so that a changed spec changes few lines; tooltips name the place in the YAML.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nlc.graph.palette import COLORS, FILLS
from nlc.graph.picture import Box, Link, Picture, inner_blocks, rows

STYLES = {"host": "dotted", "owns": "dashed", "tensor": "dotted"}


def to_dot(shown: Picture) -> str:
    """A picture as the text of a DOT file."""
    return "".join(f"{line}\n" for line in _lines(shown))


def quoted(text: str) -> str:
    """A string of DOT: quotes and backslashes are escaped, a line break is `\\n`."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _lines(shown: Picture) -> Iterator[str]:
    yield f"digraph {quoted(shown.name)} {{"
    yield f"  graph [label={quoted(shown.name)}, labelloc=t, rankdir=TB, newrank=true, fontname=Courier]"
    yield "  node [shape=box, style=filled, fontname=Courier, fontsize=11]"
    yield "  edge [fontname=Courier, fontsize=9, constraint=false]"
    if shown.has_flows:
        yield from _indented(_cluster("flows", "flows", _flows(shown)))
    for lane, label in shown.lanes.items():
        members = [_node(box) for box in shown.boxes.values() if box.lane == lane]
        yield from _indented(_cluster(label, label, members))
    yield from _indented(_rows(shown))
    yield from _indented(map(_edge, shown.links))
    yield "}"


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def _cluster(id: str, label: str, inside: Iterable[str]) -> Iterator[str]:
    yield f"subgraph {quoted(f'cluster {id}')} {{"
    yield f"  graph [label={quoted(label)}, labeljust=l]"
    yield from _indented(inside)
    yield "}"


def _flows(shown: Picture, block: str = "") -> Iterator[str]:
    """The flows of a block, then the blocks inside it."""
    yield from (_node(box) for box in shown.boxes.values() if box.lane is None and box.block == block)
    for scope in inner_blocks(shown, block):
        yield from _cluster(scope, shown.block_label(scope), _flows(shown, scope))


def _rows(shown: Picture) -> Iterator[str]:
    """What stands in one row, and an edge that nobody sees from row to row."""
    found = rows(shown)
    for row in found:
        yield f"{{ rank=same; {'; '.join(map(quoted, row))} }}"
    if len(found) > 1:
        yield f"{' -> '.join(quoted(row[0]) for row in found)} [style=invis, constraint=true]"


def _node(box: Box) -> str:
    fill, stroke = FILLS[box.kind]
    shape = ', style="filled,rounded"' if box.kind == "input" else ""
    text = "\n".join(box.lines)
    return f'{quoted(box.id)} [label={quoted(text)}, tooltip={quoted(box.title)}, fillcolor="{fill}", color="{stroke}"{shape}]'


def _edge(link: Link) -> str:
    color, style = COLORS[link.kind], f", style={STYLES[link.kind]}" if link.kind in STYLES else ""
    label = "" if link.kind == "argument" else f", label={quoted(link.kind)}"
    return (
        f"{quoted(link.source)} -> {quoted(link.target)} "
        f'[class={quoted(link.kind)}, tooltip={quoted(link.title)}{label}, color="{color}", fontcolor="{color}"{style}]'
    )
