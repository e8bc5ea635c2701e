"""The level graph as one SVG file that needs nothing else: no fonts, scripts or other files.

Flows run from left to right in the lane at the top; below it the learners stand in lanes of equal frequency, fast above slow
(as in the figures of Nested Learning); at the bottom are the tensors that only outer levels write. Edges are routed at right
angles: down or up in the gutter behind a column, along a track of their own. The panel is opaque, so that the picture can be
read on a light and on a dark page.

The picture in the README:  nlc graph specs/models/gated_delta_lm.yaml --as svg > docs/images/gated_delta_lm.svg
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from xml.sax.saxutils import escape, quoteattr

from nlc.graph.layout import LINE, MARGIN, PAD, Layout, Placed, lay_out
from nlc.graph.palette import COLORS, FILLS
from nlc.graph.picture import Picture

ENTRY = 252.0
"""Width of an entry of the legend."""

MEANINGS = {
    "argument": "flow to flow",
    "recall": "what a learner answers",
    "query": "what it is asked",
    "host": "part of its rule",
    "owns": "whose tensors it writes",
    "tensor": "slow tensors in use",
}
DASHED = {"host": "2 3", "owns": "6 4", "tensor": "1 3"}


def to_svg(shown: Picture, marks: Mapping[str, str] | None = None, prefix: str = "") -> str:
    """A picture as the text of an SVG file.

    `marks` are further attributes of boxes, by id; `prefix` keeps ids apart where a page holds several.
    """
    return _Drawing(shown, lay_out(shown), marks or {}, prefix).text()


class _Drawing:
    def __init__(self, shown: Picture, layout: Layout, marks: Mapping[str, str], prefix: str) -> None:
        self.shown, self.layout, self.marks, self.prefix = shown, layout, marks, prefix
        self.kinds = [kind for kind in COLORS if any(link.kind == kind for link in shown.links)]

    def text(self) -> str:
        legend = list(self._legend())
        width, height = max(self.layout.width, 640.0), self.layout.height + 12 + LINE * (1 + (len(self.kinds) - 1) // self._across())
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
        head += (
            f'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="11" role="img" aria-label={quoteattr(self.shown.name)}>'
        )
        parts = [
            head,
            f"<title>{escape(self.shown.name)}</title>",
            "<defs>",
            *(_marker(kind, self.prefix) for kind in self.kinds),
            "</defs>",
        ]
        parts.append(f'<rect width="{width:.0f}" height="{height:.0f}" rx="6" fill="#fbfbfc"/>')
        parts.append(_text(MARGIN, MARGIN + 12, self.shown.name, "#1c2128", "bold", 14))
        boxes = (_box(at, self.marks.get(at.box.id, "")) for at in self.layout.boxes.values())
        parts += [*self._lanes(width), *self._frames(), *self._edges(), *boxes, *legend, "</svg>"]
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
            ends = f" data-ends={quoteattr(f'{link.source}|{link.target}')}" if self.marks else ""
            yield f'<path d="{path}" {style} marker-end="url(#{self.prefix}{link.kind})"{ends}><title>{escape(link.title)}</title></path>'

    def _across(self) -> int:
        """How many entries of the legend stand beside each other."""
        return max(1, int((max(self.layout.width, 640.0) - 2 * MARGIN) // ENTRY))

    def _legend(self) -> Iterator[str]:
        for i, kind in enumerate(self.kinds):
            x = MARGIN + ENTRY * (i % self._across())
            y = self.layout.height + 4 + LINE * (i // self._across())
            dash = f' stroke-dasharray="{DASHED[kind]}"' if kind in DASHED else ""
            end = f'marker-end="url(#{self.prefix}{kind})"'
            yield f'<path d="M{x:.1f},{y - 4:.1f} h22" stroke="{COLORS[kind]}" stroke-width="1.4"{dash} {end}/>'
            meaning = f"{kind}: {MEANINGS[kind]}" if kind in MEANINGS else kind
            yield _text(x + 32, y, meaning, "#57606a")


def _marker(kind: str, prefix: str) -> str:
    shape = f'<path d="M0,0 L8,4 L0,8 z" fill="{COLORS[kind]}"/>'
    size = 'viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="6" markerHeight="6"'
    return f'<marker id="{prefix}{kind}" {size} orient="auto">{shape}</marker>'


def _box(at: Placed, marks: str) -> str:
    fill, stroke = FILLS[at.box.kind]
    radius = 10 if at.box.kind == "input" else 3
    lines = [f"<g{' ' if marks else ''}{marks}><title>{escape(at.box.title)}</title>"]
    size = f'width="{at.width:.1f}" height="{at.height:.1f}" rx="{radius}"'
    lines.append(f'<rect class="box" x="{at.x:.1f}" y="{at.y:.1f}" {size} fill="{fill}" stroke="{stroke}"/>')
    for i, text in enumerate(at.box.lines):
        lines.append(_text(at.x + PAD, at.y + LINE * (i + 1), text, "#1c2128" if i == 0 else "#57606a", "bold" if i == 0 else ""))
    return "".join([*lines, "</g>"])


def _text(x: float, y: float, text: str, color: str, weight: str = "", size: int = 0) -> str:
    more = (f' font-weight="{weight}"' if weight else "") + (f' font-size="{size}"' if size else "")
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}"{more}>{escape(text)}</text>'
