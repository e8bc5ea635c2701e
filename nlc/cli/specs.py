"""SPEC arguments: a path, or a name of the library such as `ops/delta_rule`; values given with --set and --pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from nlc.diagnostics import UsageError

if TYPE_CHECKING:
    from nlc.language.library import Library
    from nlc.language.spec import Spec


def complete_spec(incomplete: str) -> list[str]:
    """For the shell: names of the library, and spec files and folders, that begin so."""
    from nlc.language.library import Library

    folder, _, start = incomplete.rpartition("/")
    here = Path(folder or ".")
    found = [path for path in (here.iterdir() if here.is_dir() else ()) if path.name.startswith(start) and not path.name.startswith(".")]
    files = [f"{path}/" if path.is_dir() else str(path) for path in found if path.is_dir() or path.suffix == ".yaml"]
    library = Library()
    known = [f"{role}/{name}" for role in library.roles() for name in library.names(role)]
    return sorted({*(name for name in known if name.startswith(incomplete)), *files})


SpecArgument = Annotated[
    str,
    typer.Argument(
        metavar="SPEC", help="A spec file, or a name of the library: ops/delta_rule.", show_default=False, autocompletion=complete_spec
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Another value for a dim or a param, or preset=NAME; may be repeated.", show_default=False
    ),
]

Value = int | float | str
"""A number, or a precision such as bfloat16."""
PRESET = "preset"
"""The name that `--set` takes a preset by."""


@dataclass(frozen=True)
class Chosen:
    """A loaded spec, the library that its names come from, and the values that replace its own."""

    spec: Spec
    library: Library
    dims: dict[str, int]
    params: dict[str, Value]


def open_spec(name: str, settings: Iterable[str] | None = None) -> Chosen:
    """Load a spec by path or library name. Raises SpecError, or DataError where there is no such file."""
    from nlc.graph.build import preset_values
    from nlc.language.library import Library

    library = Library()
    spec = library.open(library.locate(name))
    dims: dict[str, Value] = {}
    params: dict[str, Value] = {}
    declared = {param.name for param in spec.params}
    chosen = [text for text in settings or () if text.partition("=")[0].strip() == PRESET]
    given = [text for text in settings or () if text not in chosen]
    values = [pair for text in chosen for pair in preset_values(spec, text.partition("=")[2].strip()).items()]
    for key, value in [*values, *map(_setting, given)]:
        if key in declared:
            params[key] = value
        else:
            dims[key] = value  # `build` refuses what is no whole number, with a diagnostic
    return Chosen(spec, library, cast("dict[str, int]", dims), params)


def _setting(text: str) -> tuple[str, Value]:
    name, equals, given = text.partition("=")
    value = _value(given)
    if not equals or not name.strip() or value is None:
        raise UsageError(f"`--set {text}` is not of the form NAME=NUMBER, for example `--set H=8`")
    return name.strip(), value


def _value(text: str) -> Value | None:
    from nlc.language.schema import DTYPES

    if text.strip() in DTYPES:
        return text.strip()
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return None


def pass_options(chosen: Iterable[str]) -> dict[str, dict[str, object]]:
    """`--pass choose-form:form=recurrent,chunk=32` -> {"choose-form": {"form": "recurrent", "chunk": 32}}."""
    found: dict[str, dict[str, object]] = {}
    for text in chosen:
        name, _, rest = text.partition(":")
        if name in found:
            raise UsageError(f"the pass `{name}` is named twice")
        found[name] = dict(_option(name, item) for item in rest.split(",")) if rest else {}
    return found


def _option(name: str, item: str) -> tuple[str, object]:
    from nlc.passmanager import find_pass

    kinds = {field.name: str(field.type) for field in fields(find_pass(name))}
    key, equals, value = item.partition("=")
    key = key.strip().replace("-", "_")
    if not equals or key not in kinds:
        known = ", ".join(option.replace("_", "-") for option in kinds)
        raise UsageError(f"the pass `{name}` has no option `{item}`; {f'options: {known}' if known else 'it has none'}")
    readers = {"int": int, "float": float, "str": str, "bool": {"true": True, "false": False}.__getitem__}
    try:
        return key, readers[kinds[key]](value)  # type: ignore[operator]
    except (KeyError, ValueError):
        raise UsageError(f"`{value}` is no {kinds[key]}, which the option `{key}` of `{name}` needs") from None
