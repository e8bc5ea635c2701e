"""The commands and their order in `nlc --help`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from nlc.cli import compiling, emitting, explaining, inspecting, optimizing, training
from nlc.cli.session import INTERRUPTED

app = typer.Typer(
    name="nlc",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

for command in (
    inspecting.check,
    inspecting.graph,
    explaining.explain,
    optimizing.opt,
    compiling.compile,
    emitting.emit,
    training.train,
    training.sample,
    optimizing.passes,
    inspecting.list_specs,
    inspecting.schema,
):
    app.command(command.__name__.removesuffix("_specs"))(command)


def _version(wanted: bool) -> None:
    if wanted:
        from nlc import __version__

        typer.echo(f"nlc {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """A compiler for declared learners: YAML in, optimised PyTorch out.

    Results go to stdout, messages to stderr. Exit codes: 0 fine, 1 mistakes in a spec, 2 wrong usage, 3 a backend is
    missing or failed, 4 input data or files, 70 a bug of nlc.

    \b
    Example: nlc check ops/delta_rule
             nlc explain ops/delta_rule
             nlc compile ops/delta_rule -o out
    """


def run() -> None:
    """The console script."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
