"""emit: one form of a compiled spec on stdout or in a file."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated

import typer

from nlc.cli.compiling import BatchOption, ChunkOption, Form, FormOption, TokensOption
from nlc.cli.inspecting import GraphForm, OutOption, build_graph, graph_text, write
from nlc.cli.optimizing import ExactOption, OnlyOption, PassOption, WithoutOption, choose_passes, run_passes
from nlc.cli.session import Color, ColorOption, DebugOption, session
from nlc.cli.specs import SetOption, SpecArgument, open_spec
from nlc.diagnostics import NOWHERE, BackendError

if TYPE_CHECKING:
    from nlc.graph.ir import LevelGraph
    from nlc.passmanager import Stage


class Target(enum.StrEnum):
    python = "python"
    inductor = "inductor"
    torch_mlir = "torch-mlir"
    linalg = "linalg"
    tosa = "tosa"
    stablehlo = "stablehlo"
    program = "program"
    text = "text"
    json = "json"
    svg = "svg"


MLIR = (Target.torch_mlir, Target.linalg, Target.tosa, Target.stablehlo)


def emit(
    spec: SpecArgument,
    target: Annotated[Target, typer.Option("--as", help="The form of the output.", show_default=False)],
    output: OutOption = None,
    form: FormOption = Form.auto,
    chunk: ChunkOption = 0,
    chosen: PassOption = None,
    only: OnlyOption = None,
    without: WithoutOption = None,
    exact: ExactOption = False,
    settings: SetOption = None,
    batch: BatchOption = 1,
    tokens: TokensOption = 64,
    color: ColorOption = Color.auto,
    debug: DebugOption = False,
) -> None:
    """Print one form of a compiled spec: after all passes, as graph, program, torch module, Inductor's code or MLIR.

    torch-mlir, linalg, tosa and stablehlo are dialects of MLIR: one function for exactly this many rows and tokens, with parameters, inputs
    and states as arguments. They need torch-mlir.

    \b
    Example: nlc emit ops/delta_rule --as python
             nlc emit ops/delta_rule --as linalg --tokens 128 -o delta.mlir
             nlc emit models/gated_delta_lm --as stablehlo --tokens 1
    """
    with session(color, debug) as out:
        passes = choose_passes(chosen, only, without, None, exact, {"choose-form": {"form": str(form), "chunk": chunk}})
        after, stages = run_passes(passes, build_graph(open_spec(spec, settings)))
        write(out, _emitted(target, after, stages, batch, tokens), output)


def _emitted(target: Target, after: LevelGraph, stages: tuple[Stage, ...], batch: int, tokens: int) -> str:
    if target in (Target.text, Target.json, Target.svg):
        return graph_text(after, GraphForm(str(target)))
    if target is Target.inductor:
        return _inductor(after, stages, batch, tokens)
    if target in MLIR:
        return _mlir(target, after, stages, batch, tokens)
    from nlc.program.program import schedule

    program = schedule(after)
    if target is Target.program:
        from nlc.program.text import program_text

        return program_text(program)
    from nlc.backends.torch_module import generate

    return generate(program).source


def _inductor(after: LevelGraph, stages: tuple[Stage, ...], batch: int, tokens: int) -> str:
    from nlc.cli.artefacts import inductor_files
    from nlc.runtime.codes import BackendFailed

    files, missing = inductor_files(lambda text: None, after, stages, batch, tokens)
    if missing:
        raise BackendError([BackendFailed(missing, NOWHERE)])
    return "\n".join(f"# {name}\n{code}" for name, code in files.items())


def _mlir(target: Target, after: LevelGraph, stages: tuple[Stage, ...], batch: int, tokens: int) -> str:
    from nlc.program.program import schedule

    schedule(after)  # what has no program is said before torch is loaded
    from nlc.backends.mlir import mlir, require_packages
    from nlc.runtime.compiling import compile_graph

    require_packages("torch_mlir")
    lowered = mlir(compile_graph(after, stages, "eager", 0, export=True), target.value, batch, tokens)
    return lowered.commented(f"{after.name}: {batch} rows of {tokens} tokens, from {after.file}")
