"""How a command talks and how it ends: results on stdout, messages on stderr, one exit code for each kind of failure."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, TextIO

import typer

from nlc.diagnostics import Diagnostic, NlcError, SpecError

SCHEMA_VERSION = 1
"""The version of all JSON that commands print. Keys may be added within a version; none is removed or renamed."""

OUR_BUG = 70
INTERRUPTED = 130


class Color(enum.StrEnum):
    auto = "auto"
    always = "always"
    never = "never"


ColorOption = Annotated[Color, typer.Option("--color", help="Colour messages; `auto` means on a terminal and without NO_COLOR.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the Python traceback of an error.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, with its schema_version.")]


@dataclass(frozen=True)
class Session:
    """Where a command's output goes, and how it looks."""

    as_json: bool
    color: Color

    def result(self, text: str) -> None:
        """Print a result on stdout."""
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")

    def json(self, document: Mapping[str, object]) -> None:
        """Print a JSON document on stdout."""
        self.result(json_text(document))

    def message(self, text: str) -> None:
        """Print a message on stderr."""
        sys.stderr.write(f"{self.painted(text, sys.stderr)}\n")

    def progress(self, text: str) -> None:
        """Print a message on stderr if somebody watches."""
        if sys.stderr.isatty():
            self.message(text)

    def painted(self, text: str, stream: TextIO) -> str:
        return _paint(text) if _wants_color(self.color, stream) else text

    def failed(self, error: NlcError) -> None:
        """Say what went wrong, as text and, where JSON was asked for, as JSON."""
        if isinstance(error, SpecError):
            self.message(error.render())
            found = [diagnostic.to_json() for diagnostic in error.diagnostics]
        elif error.exit_code == OUR_BUG:
            self.message(f"{bug(error)}")
            found = []
        else:
            self.message(f"error: {error}")
            found = []
        if self.as_json:
            self.json({"error": {"message": str(error), "exit_code": error.exit_code, "diagnostics": found}})


def json_text(document: Mapping[str, object]) -> str:
    """A JSON document as commands print it."""
    return json.dumps({"schema_version": SCHEMA_VERSION, **document}, indent=2, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def session(color: Color = Color.auto, debug: bool = False, as_json: bool = False) -> Iterator[Session]:
    """The body of every command: turns exceptions into messages and exit codes."""
    out = Session(as_json, color)
    try:
        yield out
        sys.stdout.flush()
    except typer.Exit:
        raise
    except NlcError as error:
        _traceback(debug)
        out.failed(error)
        raise typer.Exit(error.exit_code) from None
    except BrokenPipeError:
        # The reader has seen enough. Python would complain once more when it closes stdout.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except KeyboardInterrupt:
        out.message("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:  # noqa: BLE001 - the last line of defence: a traceback is for `--debug`
        _traceback(debug)
        out.message(bug(error))
        raise typer.Exit(OUR_BUG) from None


def bug(error: BaseException) -> str:
    """The one line that a failure of nlc itself prints."""
    text = " ".join(str(error).split())[:300]
    kind = "" if isinstance(error, NlcError) else f"{type(error).__name__}: "
    return f"error: {kind}{text}: this is a bug of nlc; please report it with the spec and the output of `--debug`"


def _traceback(debug: bool) -> None:
    if debug:
        traceback.print_exc()


def render(diagnostics: Iterable[Diagnostic], sources: Mapping[str, str], severity: str = "error") -> str:
    """Diagnostics as text, with their source lines."""
    texts = (d.render(sources.get(d.span.file)) for d in diagnostics)
    return "\n\n".join(text.replace("error[", f"{severity}[", 1) for text in texts)


def _wants_color(color: Color, stream: TextIO) -> bool:
    if color is not Color.auto:
        return color is Color.always
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


_PAINTS = (
    (re.compile(r"^(error)((?:\[\w+\])?:)", re.MULTILINE), "\033[1;31m\\1\\2\033[0m"),
    (re.compile(r"^(warning)((?:\[\w+\])?:)", re.MULTILINE), "\033[1;33m\\1\\2\033[0m"),
    (re.compile(r"^( *\| +)(\^+)$", re.MULTILINE), "\\1\033[31m\\2\033[0m"),
    (re.compile(r"^( *= )(help|note):", re.MULTILINE), "\\1\033[36m\\2\033[0m:"),
)


def _paint(text: str) -> str:
    for pattern, replacement in _PAINTS:
        text = pattern.sub(replacement, text)
    return text
