"""Spec files on disk: reading them within limits, and how their names are shown."""

from __future__ import annotations

import os
from pathlib import Path

from nlc.diagnostics import DataError, Diagnostic, Span, SpecError
from nlc.language.yaml_reader import MAX_CHARACTERS, TooLarge


class MissingFile(Diagnostic):
    """A file that does not exist.

    Why: there is nothing to read.
    Wrong:  nlc check specs/models/hpoe.yaml
    Right:  nlc check specs/models/hope.yaml
    """

    code = "NLC001"


class NotAFile(Diagnostic):
    """A folder, or another thing that is not a file.

    Why: a spec is one file.
    Wrong:  nlc check specs/models
    Right:  nlc check specs/models/hope.yaml
    """

    code = "NLC002"


class UnreadableFile(Diagnostic):
    """A file that the system does not let us read.

    Why: most often its permissions forbid it.
    Wrong:  a file with mode 000
    Right:  a file that your user may read
    """

    code = "NLC003"


class NotUtf8(Diagnostic):
    """A file whose bytes are not UTF-8 text.

    Why: other encodings cannot be told apart with certainty.
    Wrong:  a file saved as Latin-1 or UTF-16
    Right:  the same file saved as UTF-8
    """

    code = "NLC005"


MAX_BYTES = 4 * MAX_CHARACTERS


def shown_path(path: Path) -> str:
    """The path as messages show it: relative where it lies below the current folder."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def read_text(path: Path) -> str:
    """The text of a spec file; raises DataError, or SpecError for what is in it."""
    name = shown_path(path)
    place = Span(name, 0, 0, 0, 0)
    try:
        if not path.exists():
            raise DataError([MissingFile("there is no such file", place)])
        if not path.is_file():
            what = "a folder, not a file" if path.is_dir() else "not a file"
            raise DataError([NotAFile(f"this is {what}", place, "name one spec file")])
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else "the name is not valid"
        raise DataError([UnreadableFile(f"the file cannot be read: {reason}", place)]) from None
    if len(data) > MAX_BYTES:
        raise SpecError([TooLarge(f"the file is larger than {MAX_BYTES} bytes", place)])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError([_not_utf8(data, error.start, name)]) from None


def _not_utf8(data: bytes, at: int, name: str) -> Diagnostic:
    line = data.count(b"\n", 0, at)
    column = len(data[data.rfind(b"\n", 0, at) + 1 : at].decode("utf-8", "replace"))
    return NotUtf8(f"the byte 0x{data[at]:02x} is not UTF-8", Span(name, line, column, line, column + 1), "save the file as UTF-8")
