"""Copies functions out of `kernels.py` and `layers.py`, with everything they need, in the order of the files.

For export, the functions of `export_kernels.py` stand for those of the same name; where gradients are differentiated, those of them that
are differentiable as they are written.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

QUARRIES = ("layers.py", "kernels.py", "segments.py", "documents.py")
EXPORT = "export_kernels.py"
FIXED = ("over_periods",)
"""Functions for export that need a fixed number of tokens."""


@dataclass(frozen=True)
class Piece:
    """One top-level statement: its text, the names it defines and those it uses."""

    text: str
    names: frozenset[str]
    uses: frozenset[str]


@cache
def pieces(export: bool = False, twice: bool = False) -> tuple[Piece, ...]:
    """Of the usual form, of that for export, or of one that can be differentiated twice."""
    found = [piece for file in QUARRIES for piece in _read(file)]
    if not export and not twice:
        return tuple(found)
    plain = [piece for piece in _read(EXPORT) if export or not piece.names & {*FIXED}]
    replaced = frozenset().union(*(piece.names for piece in plain))
    return (*(piece for piece in found if not piece.names & replaced), *plain)


@cache
def names() -> frozenset[str]:
    """All names that a function of these files may bring into a generated module, in either form."""
    return frozenset().union(*(piece.names for export in (False, True) for piece in pieces(export)))


def _read(file: str) -> list[Piece]:
    text = (files("nlc.backends") / file).read_text(encoding="utf-8")
    lines = text.splitlines()
    found: list[Piece] = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.Assign | ast.AnnAssign | ast.ClassDef):
            start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            assert node.end_lineno is not None
            body = "\n".join(lines[start - 1 : node.end_lineno])
            uses = frozenset(n.id for n in ast.walk(node) if isinstance(n, ast.Name))
            found.append(Piece(body, _defined(node), uses))
    return found


def _defined(node: ast.stmt) -> frozenset[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return frozenset([node.name])
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return frozenset(target.id for target in targets if isinstance(target, ast.Name))


STANDARD = (
    ("collections.abc", ("Callable", "Collection", "Iterator", "Sequence")),
    ("itertools", ("accumulate", "groupby")),
    ("typing", ("Any", "NamedTuple", "TypeGuard")),
)


def imports(body: str) -> str:
    """The lines that import what a generated text uses of the standard library."""
    used = [(module, [name for name in names if re.search(rf"\b{name}\b", body)]) for module, names in STANDARD]
    lines = "".join(f"from {module} import {', '.join(names)}\n" for module, names in used if names)
    return f"{lines}\n" if lines else ""


def copy(wanted: set[str], export: bool = False, twice: bool = False) -> str:
    """The source of these functions and of what they call."""
    known = pieces(export, twice)
    needed = set(wanted)
    taken: set[int] = set()
    grew = True
    while grew:
        grew = False
        for i, piece in enumerate(known):
            if i not in taken and piece.names & needed:
                taken.add(i)
                needed |= piece.uses
                grew = True
    blocks = [known[i].text for i in sorted(taken)]
    return "\n\n\n".join(blocks)
