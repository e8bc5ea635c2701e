"""new: a commented spec to start from."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from nlc.cli.session import Color, ColorOption, DebugOption, JsonOption, session

STARTER = "starter.yaml"
"""Beside this file: a spec called `starter`, checked by the tests like any other."""


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the spec: letters, digits, `_`.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where to write it; NAME.yaml by default.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    as_json: JsonOption = False,
    color: ColorOption = Color.auto,
    debug: DebugOption = False,
) -> None:
    """Write a commented spec to start from: a memory that learns at every token.

    \b
    Example: nlc new my_memory
             nlc explain my_memory.yaml
    """
    with session(color, debug, as_json) as out:
        from nlc.diagnostics import NOWHERE, Diagnostic, UsageError
        from nlc.files import check_new, write_atomically
        from nlc.language.values import check_name

        problems: list[Diagnostic] = []
        if not check_name(name, NOWHERE, problems):
            raise UsageError("; ".join(f"{problem.message}: {problem.help}" for problem in problems))
        path = output or Path(f"{name}.yaml")
        check_new(path, force)
        text = (files("nlc.cli") / STARTER).read_text(encoding="utf-8")
        write_atomically(path, text.replace("name: starter", f"name: {name}", 1))
        if as_json:
            out.json({"file": str(path)})
        else:
            out.result(f"{path}")
            out.message(f"next: nlc explain {path}")
