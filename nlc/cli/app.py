"""The commands and their order in `nlc --help`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from nlc.cli import (
    adapting,
    comparing,
    compiling,
    emitting,
    explaining,
    exporting,
    inspecting,
    optimizing,
    starting,
    streaming,
    training,
    viewing,
)
from nlc.cli.session import INTERRUPTED

app = typer.Typer(
    name="nlc",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "new": (starting.new, "Write a commented spec to start from."),
    "check": (inspecting.check, "Find every mistake in specs."),
    "graph": (inspecting.graph, "Print the level graph of a spec."),
    "explain": (explaining.explain, "Explain a spec, an error code or a pass."),
    "diff": (comparing.diff, "Show what differs between two specs."),
    "opt": (optimizing.opt, "Run passes and print the graph."),
    "compile": (compiling.compile, "Write every stage of a spec into a folder."),
    "emit": (emitting.emit, "Print one form: python, inductor, linalg, svg .."),
    "export": (exporting.export, "Write an IREE module or a package of torch."),
    "view": (viewing.view, "Write a page that shows all of it."),
    "train": (training.train, "Train a byte language model on a text."),
    "adapt": (adapting.adapt, "Give a spec the trained weights of a checkpoint."),
    "sample": (training.sample, "Print what a trained model writes."),
    "stream": (streaming.stream, "Read on and learn, state kept on disk."),
    "passes": (optimizing.passes, "List the passes in order."),
    "list": (inspecting.list_specs, "List the spec library."),
    "schema": (inspecting.schema, "Print the JSON schema of specs."),
}


def _example(function: Callable[..., None]) -> str:
    """The first example in the help of a command."""
    return (function.__doc__ or "").partition("Example: ")[2].partition("\n")[0].strip()


for _name, (_function, _summary) in COMMANDS.items():
    app.command(_name, short_help=f"{_summary} [{_example(_function)}]")(_function)


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
