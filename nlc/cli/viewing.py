"""view: a page that shows what the compiler made of a spec."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nlc.cli.compiling import Backend, BatchOption, ChunkOption, Form, FormOption, TokensOption
from nlc.cli.optimizing import ExactOption, OnlyOption, PassOption, WithoutOption, choose_passes, run_passes
from nlc.cli.session import Color, ColorOption, DebugOption, render, session
from nlc.cli.specs import SetOption, SpecArgument, open_spec

if TYPE_CHECKING:
    from nlc.diagnostics import BackendError
    from nlc.graph.ir import LevelGraph


def view(
    spec: SpecArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The HTML file.", show_default=False)],
    backend: Annotated[Backend, typer.Option("--backend", help="`inductor` compiles, and shows its code as well.")] = Backend.eager,
    form: FormOption = Form.auto,
    chunk: ChunkOption = 0,
    chosen: PassOption = None,
    only: OnlyOption = None,
    without: WithoutOption = None,
    exact: ExactOption = False,
    settings: SetOption = None,
    batch: BatchOption = 2,
    tokens: TokensOption = 64,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    color: ColorOption = Color.auto,
    debug: DebugOption = False,
) -> None:
    """Write one HTML page with the graph, every pass, the program, the generated code, costs and updates.

    The page needs no server and no network. Where a learner has no program yet, the page says why. Never imports torch,
    but with `--backend inductor`.

    \b
    Example: nlc view models/gated_delta_lm -o report.html
             nlc view ops/delta_rule -o report.html --backend inductor --force
    """
    with session(color, debug) as out:
        from nlc.checking import unread_learners
        from nlc.cli.artefacts import inductor_files
        from nlc.cli.inspecting import build_graph
        from nlc.files import check_new, write_atomically
        from nlc.graph.explain import explain_graph
        from nlc.view.report import Made, report

        passes = choose_passes(chosen, only, without, None, exact, {"choose-form": {"form": str(form), "chunk": chunk}})
        opened = open_spec(spec, settings)
        check_new(output, force)
        before = build_graph(opened)
        after, stages = run_passes(passes, before)
        warnings = unread_learners(before, stages)
        if warnings:
            out.message(render(warnings, before.sources, "warning"))
        program, generated, missing = _code(after)
        kernels: dict[str, str] = {}
        if missing is not None:
            out.message(f"{missing}\nthe report has no program")
        elif backend is Backend.inductor:
            kernels, skipped = inductor_files(out.progress, after, stages, batch, tokens)
            if skipped:
                out.message(f"Inductor's code is left out: {skipped}")
        explanation = explain_graph(after, opened.library, before)
        page = report(Made(before, after, stages, explanation, program, generated, kernels))
        check_new(output, force)
        write_atomically(output, page)
        out.result(str(output))


def _code(graph: LevelGraph) -> tuple[str, str, BackendError | None]:
    """Program and generated code, or the reason why a graph has none."""
    from nlc.backends.torch_module import generate
    from nlc.diagnostics import BackendError
    from nlc.program.program import schedule
    from nlc.program.text import program_text

    try:
        program = schedule(graph)
        return program_text(program), generate(program).source, None
    except BackendError as error:
        return str(error), "# none, since there is no program\n", error
