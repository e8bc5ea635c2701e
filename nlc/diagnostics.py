"""What nlc tells a user who made a mistake.

NlcError
 +- SpecError        the spec, or the way it is used, can be mended by the user; carries diagnostics   (exit 1)
 +- UsageError       a wrong command or argument                                                       (exit 2)
 +- BackendError     a backend or optional package is missing, or cannot lower something               (exit 3)
 +- DataError        input tensors, texts, checkpoints, files and folders                              (exit 4)
 +- InternalError    our bug                                                                           (exit 70)

A diagnostic class exists for each code; its docstring is what `nlc explain NLC101` prints. The classes live beside the
code that finds the mistake and register themselves here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar


@dataclass(frozen=True, order=True)
class Span:
    """A region of a file. Lines and columns count from 0; the end is exclusive."""

    file: str
    line: int
    column: int
    end_line: int
    end_column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line + 1}:{self.column + 1}"


NOWHERE = Span("", 0, 0, 0, 0)
CODES: dict[str, type[Diagnostic]] = {}


@dataclass(frozen=True)
class Diagnostic:
    """One mistake: what is wrong, where, and a way out.

    `notes` are further remarks; a note with a span shows the second place.
    """

    message: str
    span: Span
    help: str | None = None
    notes: tuple[tuple[str, Span | None], ...] = ()

    code: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        if cls.code in CODES:
            raise AssertionError(f"code {cls.code} is taken by {CODES[cls.code].__name__}")
        CODES[cls.code] = cls

    def noted(self, text: str, span: Span) -> Diagnostic:
        """The same mistake with a further remark, unless it has that remark already."""
        return self if any(text == known for known, _ in self.notes) else replace(self, notes=(*self.notes, (text, span)))

    def render(self, source: str | None) -> str:
        """The message with the offending line and a caret; `source` is the text of the file, if there is one."""
        span = self.span
        out = [f"error[{self.code}]: {self.message}"]
        lines = source.splitlines() if source is not None else []
        width = len(str(span.line + 1))
        if span.file:
            out.append(f"{' ' * width}--> {span}")
        if span.line < len(lines):
            text = lines[span.line].replace("\t", " ")
            shown, offset = _window(text, span.column)
            end = span.end_column if span.end_line == span.line else len(text.rstrip())
            carets = "^" * max(1, min(end, offset + len(shown)) - span.column)
            out += [f"{' ' * width} |", f"{span.line + 1} | {shown}", f"{' ' * width} | {' ' * (span.column - offset)}{carets}"]
        if self.help:
            out.append(f"{' ' * width} = help: {self.help}")
        for text, place in self.notes:
            out.append(f"{' ' * width} = note: {text}" + (f" ({place})" if place else ""))
        return "\n".join(out)

    def to_json(self) -> dict[str, object]:
        """The machine-readable form; lines and columns count from 1."""
        span = self.span
        return {
            "code": self.code,
            "message": self.message,
            "file": span.file,
            "line": span.line + 1,
            "column": span.column + 1,
            "end_line": span.end_line + 1,
            "end_column": span.end_column + 1,
            "help": self.help,
            "notes": [{"message": text, "place": str(place) if place else None} for text, place in self.notes],
        }


def _window(text: str, column: int, limit: int = 120) -> tuple[str, int]:
    """The part of a long line around `column`, and where it starts."""
    if len(text) <= limit:
        return text, 0
    start = max(0, min(column - limit // 3, len(text) - limit))
    return text[start : start + limit], start


class NlcError(Exception):
    """Base of everything nlc raises on purpose. `exit_code` is what the command line returns."""

    exit_code: ClassVar[int] = 70


class SpecError(NlcError):
    """A spec has mistakes. `diagnostics` are sorted by place; `sources` maps file names to their text."""

    exit_code = 1

    def __init__(self, diagnostics: list[Diagnostic], sources: dict[str, str] | None = None) -> None:
        self.diagnostics = sorted(dict.fromkeys(diagnostics), key=lambda d: d.span)  # one place may be met twice
        self.sources = dict(sources or {})
        super().__init__(self.render())

    def render(self) -> str:
        return "\n\n".join(d.render(self.sources.get(d.span.file)) for d in self.diagnostics)

    def with_sources(self, sources: dict[str, str]) -> SpecError:
        return type(self)(list(self.diagnostics), {**sources, **self.sources})


class UsageError(NlcError):
    exit_code = 2


class BackendError(SpecError):
    """A target cannot lower a part of the spec, or is not installed; the diagnostics name the line."""

    exit_code = 3


class DataError(SpecError):
    """A tensor, a text, a checkpoint or a folder is not what it must be."""

    exit_code = 4


class InternalError(NlcError):
    """Our bug: please report it."""
