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
    same = left == right
    head = tail = 0
    if left is not None and right is not None and not same:
        head = _shared(left, right)
        tail = _shared(left[head:][::-1], right[head:][::-1])
    at = marks.split(right if right is not None else str(left))[2]
    cells = (_cell(left, i, head, tail, "" if same else "del"), _cell(right, j, head, tail, "" if same else "ins"))
    return tag("div", *cells, class_="row", **at)


def _shared(left: str, right: str) -> int:
    """How many characters two lines have in common at their start."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _cell(line: str | None, number: int, head: int, tail: int, name: str) -> str:
    if line is None:
        return tag("code", class_="none")
    end = len(line) - tail
    changed = tag("b", text(line[head:end])) if name and (head or tail) and end > head else text(line[head:end])
    return tag("code", text(line[:head]), changed, text(line[end:]), class_=name or None, data_n=number)
