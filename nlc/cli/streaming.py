"""stream: a trained model that goes on learning from what it reads."""

from __future__ import annotations

import enum
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from nlc.cli.compiling import Backend
from nlc.cli.session import SCHEMA_VERSION, Color, ColorOption, DebugOption, session
from nlc.cli.training import BackendOption


class Format(enum.StrEnum):
    loss = "loss"
    predictions = "predictions"


def stream(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run of `nlc train`.", show_default=False)],
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="What to read; standard input if absent.", show_default=False)
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option("--state", metavar="FILE|FOLDER", help="Where the state is kept, and found again.", show_default=False),
    ] = None,
    chunk: Annotated[int, typer.Option("--chunk", min=1, help="Tokens that are read, and told of, together.")] = 64,
    format: Annotated[Format, typer.Option("--format", help="With `predictions` also the likeliest token after each.")] = Format.loss,
    learn: Annotated[bool, typer.Option("--learn/--no-learn", help="Do levels learn from what they read?")] = True,
    ids: Annotated[bool, typer.Option("--ids", help="Read token ids with white space between them, not bytes.")] = False,
    end: Annotated[
        bool, typer.Option("--end", help="A sequence ends with what is read: levels flush or drop their open periods, memories begin anew.")
    ] = False,
    backend: BackendOption = Backend.eager,
    color: ColorOption = Color.auto,
    debug: DebugOption = False,
) -> None:
    """Read text or token ids, learn as it comes, and print one line of JSON for each chunk.

    With --state a stream goes on where it was, in a FILE behind what it has read of it. The state is one file, written whole or not at all
    after each chunk in which levels were updated; a stream that was killed repeats at most the chunks after that, with equal numbers.

    \b
    Example: nlc stream run text.txt --state s.safetensors
             nlc stream run --state s.safetensors --format predictions < more.txt
    """
    with session(color, debug) as out:
        from nlc.runtime.process import set_up
        from nlc.runtime.streaming import Options, Streaming

        set_up()
        options = Options(chunk, ids, format is Format.predictions, learn, end)
        streaming = Streaming(run, state, options, str(backend))
        if streaming.note:
            out.message(f"note: {streaming.note}")
        for record in streaming.file(file) if file is not None else streaming.standard_input(sys.stdin.buffer):
            out.result(json.dumps({"schema_version": SCHEMA_VERSION, **record}))
            sys.stdout.flush()
