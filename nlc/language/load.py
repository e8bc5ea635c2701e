"""The way in: a file or a text to a typed `Spec`."""

from __future__ import annotations

from pathlib import Path

from nlc.language.library import Library
from nlc.language.spec import Spec


def load(path: str | Path, library: Library | None = None) -> Spec:
    """The spec in a file; a name without a file of that name is looked up in the library (`ops/delta_rule`).

    Raises SpecError with all mistakes of the file and of those it uses, or DataError where the file cannot be read.
    """
    library = library or Library()
    return library.open(library.locate(path))


def loads(text: str, name: str = "<string>", library: Library | None = None) -> Spec:
    """The spec in a text; `name` stands for the file in messages. `uses` are looked up in the library only."""
    return (library or Library()).read(text, name, None)
