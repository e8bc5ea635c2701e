"""What each pass did: the printed graph before and after it, side by side, without what stayed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import zip_longest

from nlc.view.html import tag, text
from nlc.view.marks import Marks

CONTEXT = 3
"""Unchanged lines that are shown around a change."""


def changes(before: str, after: str, marks: Marks) -> str:
    """The rows of a comparison, each with the place of its line."""
    old, new = before.splitlines(), after.splitlines()
    rows: list[str] = []
    for kind, i, i_end, j, j_end in SequenceMatcher(None, old, new).get_opcodes():
        if kind == "equal":
            rows += _unchanged(old[i:i_end], i, j, (i > 0, i_end < len(old)), marks)
        else:
            for k, (left, right) in enumerate(zip_longest(old[i:i_end], new[j:j_end])):
                rows.append(_row(left, i + k + 1, right, j + k + 1, marks))
    return tag("div", *rows, class_="diff")


def counts(before: str, after: str) -> tuple[int, int]:
    """Lines that went and lines that came."""
    old, new = before.splitlines(), after.splitlines()
    same = sum(block.size for block in SequenceMatcher(None, old, new).get_matching_blocks())
    return len(old) - same, len(new) - same


def _unchanged(lines: Sequence[str], i: int, j: int, joined: tuple[bool, bool], marks: Marks) -> Iterator[str]:
    """The lines next to a change; how many there are between. `joined`: is there a change above, below?"""
    first = CONTEXT if joined[0] else 0
    last = CONTEXT if joined[1] else 0
    hidden = len(lines) - first - last
    for k, line in enumerate(lines):
        if hidden <= 1 or k < first or k >= first + hidden:
            yield _row(line, i + k + 1, line, j + k + 1, marks)
        elif k == first:
            yield tag("div", text(f"{hidden} lines unchanged"), class_="gap")


def _row(left: str | None, i: int, right: str | None, j: int, marks: Marks) -> str:
    old, new = (_parts(line, marks) if line is not None else None for line in (left, right))
    head, tail = _common(old[0], new[0]) if old is not None and new is not None and left != right else (0, 0)
    names = ("del", "ins") if left != right else ("", "")
    cells = (_cell(old, i, head, tail, names[0]), _cell(new, j, head, tail, names[1]))
    shown = new or old
    return tag("div", *cells, class_="row", **(shown[2] if shown is not None else {}))


Parts = tuple[str, str, dict[str, str]]


def _parts(line: str, marks: Marks) -> Parts:
    """What stands in a line, its place, the attributes of its row; without the spaces between."""
    code, comment, at = marks.split(line)
    return code.rstrip(), comment.strip(), at


def _common(left: str, right: str) -> tuple[int, int]:
    """How many characters two lines share at both ends; none where that is less than half of a line: they are not one line changed."""
    head = _shared(left, right)
    tail = _shared(left[head:][::-1], right[head:][::-1])
    return (head, tail) if 2 * (head + tail) >= max(len(left), len(right)) else (0, 0)


def _shared(left: str, right: str) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _cell(line: Parts | None, number: int, head: int, tail: int, name: str) -> str:
    if line is None:
        return tag("code", class_="none")
    code, comment, _ = line
    end = len(code) - tail
    changed = tag("b", text(code[head:end])) if name and (head or tail) and end > head else text(code[head:end])
    place = tag("i", text(f"  {comment}"), class_="c") if comment else ""
    return tag("code", text(code[:head]), changed, text(code[end:]), place, class_=name or None, data_n=number)
