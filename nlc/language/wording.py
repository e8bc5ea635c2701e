"""Small pieces of messages: shortened quotations, near names, lists of words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from nlc.diagnostics import Diagnostic, Span

LONGEST_QUOTE = 48
MOST_SHOWN = 40
_CUTOFF = 0.7


def quoted(text: str) -> str:
    """`text` on one line between backticks, cut when it is long."""
    line = " ".join(text[: 4 * LONGEST_QUOTE].split())
    line = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in line).replace("`", "'")
    return f"`{line if len(line) <= LONGEST_QUOTE else line[: LONGEST_QUOTE - 2] + '..'}`"


def listed(words: Iterable[str], last: str = "or") -> str:
    """ "`a`, `b` or `c`"."""
    shown = [f"`{w}`" for w in words]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} {last} {shown[-1]}"


def closest(word: str, options: Iterable[str]) -> str | None:
    """The option that `word` most likely stands for; None unless one is near."""
    if not 1 < len(word) <= LONGEST_QUOTE:
        return None
    by_lower = {option.lower(): option for option in options}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=_CUTOFF)
    return by_lower[found[0]] if found else None


def did_you_mean(word: str, options: Iterable[str]) -> str | None:
    """A help line with the nearest option, or None."""
    near = closest(word, options)
    return f"did you mean `{near}`?" if near else None


def did_you_mean_or_list(word: str, options: Sequence[str], what: str) -> str:
    """The nearest option, or all of them when none is near."""
    return did_you_mean(word, options) or f"{what}: {listed(options, 'and')}"


def orderly(problems: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Each mistake once, sorted by place; a flood is cut, and the last one shown says so."""
    unique: dict[tuple[str, Span, str], Diagnostic] = {}
    for problem in problems:
        unique.setdefault((problem.code, problem.span, problem.message), problem)
    ordered = sorted(unique.values(), key=lambda p: p.span)
    if len(ordered) <= MOST_SHOWN:
        return ordered
    last = ordered[MOST_SHOWN - 1]
    note = (f"{len(ordered) - MOST_SHOWN} more mistakes are not shown", None)
    return [*ordered[: MOST_SHOWN - 1], type(last)(last.message, last.span, last.help, (*last.notes, note))]
