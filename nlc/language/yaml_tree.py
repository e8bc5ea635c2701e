"""The plain tree of a YAML file: nothing but text, lists and maps, and the place of every key and value."""

from __future__ import annotations

import bisect
import functools
import itertools
from dataclasses import dataclass, field

from nlc.diagnostics import Span


class Source:
    """The text of one file; turns offsets into places."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.text = text
        lines = text.splitlines(keepends=True)
        self._starts = [0, *itertools.accumulate(map(len, lines))]
        if lines and lines[-1].splitlines()[0] == lines[-1]:
            self._starts.pop()

    def offset(self, line: int, column: int) -> int:
        return min(self._starts[min(line, len(self._starts) - 1)] + column, len(self.text))

    def span(self, start: int, end: int) -> Span:
        return Span(self.file, *self._position(start), *self._position(end))

    def _position(self, offset: int) -> tuple[int, int]:
        line = bisect.bisect_right(self._starts, offset) - 1
        return line, offset - self._starts[line]


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value. `kind` is `str`, `int`, `float`, `bool` or `null`; `style` is the quote or block sign, empty when plain."""

    text: str
    kind: str
    style: str
    span: Span
    source: Source = field(repr=False, compare=False)
    start: int
    end: int

    def place(self, start: int, end: int) -> Span:
        """Where `text[start:end]` stands in the file."""
        if not self.style and self.end - self.start == len(self.text):
            return self.source.span(self.start + start, self.start + end)
        raw = self.source.text[self.start : self.end]
        offsets = _offsets(self.text, raw, self.style)
        last = min(offsets[end - 1] + _width(raw, offsets[end - 1], self.style), len(raw)) if end > start else offsets[start]
        return self.source.span(self.start + offsets[start], self.start + max(last, offsets[start]))


@dataclass(frozen=True, slots=True)
class Sequence:
    items: tuple[Node, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Entry:
    """A key and its value."""

    key: str
    key_span: Span
    value: Node


@dataclass(frozen=True, slots=True)
class Mapping:
    """`incomplete` is true where a key was refused, so that nothing is called missing."""

    entries: dict[str, Entry]
    span: Span
    incomplete: bool = False

    def get(self, key: str) -> Node | None:
        entry = self.entries.get(key)
        return entry.value if entry else None


@dataclass(frozen=True, slots=True)
class Broken:
    """A value that was refused, and reported, when the YAML was read."""

    span: Span


Node = Scalar | Sequence | Mapping | Broken


def describe(node: Node) -> str:
    """The node in the words of a message."""
    match node:
        case Scalar(kind="null"):
            return "nothing"
        case Scalar(kind="bool"):
            return "a truth value"
        case Scalar(kind="int" | "float"):
            return "a number"
        case Scalar():
            return "text"
        case Sequence():
            return "a list"
        case Mapping():
            return "a map"
    return "something else"


@functools.lru_cache(maxsize=4)
def _offsets(text: str, raw: str, style: str) -> tuple[int, ...]:
    """For each character of a scalar, and for its end, where it stands in the raw text between the quotes.

    Folded lines, escapes and indentation make the two differ; both are walked side by side.
    """
    at = _content_start(raw, style)
    offsets = []
    for char in text:
        escaped = style == '"' and raw.startswith("\\", at) and not raw.startswith(("\\\n", "\\\r"), at)
        if char in " \t\n" and not escaped:
            step = _blank(raw, at)
        else:
            at = _skip_blank(raw, at, style)
            step = _width(raw, at, style)
        offsets.append(min(at, len(raw)))
        at += step
    return (*offsets, min(at, len(raw)))


def _content_start(raw: str, style: str) -> int:
    if style in ("|", ">"):
        return raw.find("\n") + 1
    return 1 if style else 0


def _blank(raw: str, at: int) -> int:
    """How many raw characters one folded blank covers: one space, or a line break with all blanks around it."""
    end = at
    while end < len(raw) and raw[end] in " \t\r\n":
        end += 1
    return end - at if "\n" in raw[at:end] or "\r" in raw[at:end] else min(1, end - at)


def _skip_blank(raw: str, at: int, style: str) -> int:
    while at < len(raw) and (raw[at] in " \t\r\n" or (style == '"' and raw[at] == "\\" and raw[at + 1 : at + 2] in ("\n", "\r"))):
        at += 1
    return at


def _width(raw: str, at: int, style: str) -> int:
    """How many raw characters write one character."""
    if style == "'" and raw.startswith("''", at):
        return 2
    if style == '"' and raw.startswith("\\", at):
        return {"x": 4, "u": 6, "U": 10}.get(raw[at + 1 : at + 2], 2)
    return 1
