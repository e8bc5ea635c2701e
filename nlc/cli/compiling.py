"""compile: everything the compiler makes of a spec, as files in one folder."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from nlc.cli.optimizing import ExactOption, OnlyOption, PassOption, VerboseOption, WithoutOption, choose_passes, run_passes, times
from nlc.cli.session import Color, ColorOption, DebugOption, JsonOption, render, session
from nlc.cli.specs import SetOption, SpecArgument, open_spec


class Backend(enum.StrEnum):
    inductor = "inductor"
    eager = "eager"


class Form(enum.StrEnum):
    auto = "auto"
    chunkwise = "chunkwise"
    recurrent = "recurrent"


BatchOption = Annotated[int, typer.Option("--batch", min=1, help="Rows of the example inputs.")]
TokensOption = Annotated[int, typer.Option("--tokens", min=1, help="Tokens of the example inputs.")]
FormOption = Annotated[Form, typer.Option("--form", help="How memories run.")]
ChunkOption = Annotated[int, typer.Option("--chunk", min=0, help="The chunk length, a power of two; 0 takes the cheapest.")]


def compile(
    spec: SpecArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The folder for all files.", show_default=False)],
    backend: Annotated[Backend, typer.Option("--backend", help="`eager` leaves out Inductor's code.")] = Backend.inductor,
    form: FormOption = Form.auto,
    chunk: ChunkOption = 0,
    chosen: PassOption = None,
    only: OnlyOption = None,
    without: WithoutOption = None,
    exact: ExactOption = False,
    settings: SetOption = None,
    batch: BatchOption = 2,
    tokens: TokensOption = 64,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that holds other files.")] = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
    color: ColorOption = Color.auto,
    debug: DebugOption = False,
) -> None:
    """Compile a spec and write every stage: graph, passes, program, generated source, Inductor's code.

    The folder is written when all of it is known; manifest.json, written last, lists the files.

    \b
    Example: nlc compile ops/delta_rule -o out
             nlc compile models/gated_delta_lm -o out --backend eager -v
    """
    with session(color, debug, as_json) as out:
        from nlc.checking import unread_learners
        from nlc.cli.artefacts import artefacts, inductor_files, with_manifest
        from nlc.cli.inspecting import build_graph
        from nlc.files import check_folder, write_folder

        options: dict[str, dict[str, object]] = {"choose-form": {"form": str(form), "chunk": chunk}}
        passes = choose_passes(chosen, only, without, None, exact, options)
        opened = open_spec(spec, settings)
        check_folder(output, force)
        before = build_graph(opened)
        after, stages = run_passes(passes, before)
        if verbose:
            out.message(times(stages))
        warnings = unread_learners(before, stages)
        if warnings:
            out.message(render(warnings, before.sources, "warning"))
        files = artefacts(before, after, stages)
        code: dict[str, str] = {}
        skipped: str | None = "the backend is eager"
        if backend is Backend.inductor:
            code, skipped = inductor_files(out.progress, after, stages, batch, tokens)
        files, manifest = with_manifest({**files, **code}, opened, before, stages, {"backend": str(backend), "inductor_skipped": skipped})
        write_folder(output, files, force)
        if as_json:
            out.json({"folder": str(output), **manifest})
        else:
            out.result("\n".join(str(output / name) for name in files))
            if skipped:
                out.message(f"Inductor's code is left out: {skipped}")
