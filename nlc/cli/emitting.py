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
from nlc.diagnostics import NOWHERE, BackendError, UsageError

if TYPE_CHECKING:
    from nlc.graph.ir import LevelGraph
    from nlc.passmanager import Stage


class Target(enum.StrEnum):
    python = "python"
    inductor = "inductor"
    ptx = "ptx"
    torch_mlir = "torch-mlir"
    linalg = "linalg"
    tosa = "tosa"
    stablehlo = "stablehlo"
    program = "program"
    text = "text"
    json = "json"
    svg = "svg"
    dot = "dot"
    mermaid = "mermaid"


CPU = "cpu"
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
    device: Annotated[
        str, typer.Option("--target", help="Of inductor and ptx: cpu, cuda:sm_80, cuda:sm_90 or cuda:sm_100; needs no GPU.")
    ] = "cpu",
    batch: BatchOption = 1,
    tokens: TokensOption = 64,
    color: ColorOption = Color.auto,
    debug: DebugOption = False,
) -> None:
    """Print one form of a compiled spec: after all passes, as graph, program, torch module, Inductor's code, PTX or MLIR.

    torch-mlir, linalg, tosa and stablehlo are dialects of MLIR: one function for exactly this many rows and tokens, with parameters, inputs
    and states as arguments. They need torch-mlir. GPU code needs triton, but no GPU.

    \b
    Example: nlc emit ops/delta_rule --as python
             nlc emit ops/delta_rule --as linalg --tokens 128 -o delta.mlir
             nlc emit models/gated_delta_lm --as stablehlo --tokens 1
             nlc emit ops/gated_delta_rule --as inductor --target cuda:sm_90
             nlc emit ops/gated_delta_rule --as ptx --target cuda:sm_90 -o rule.ptx
    """
    with session(color, debug) as out:
        _check_device(target, device)
        passes = choose_passes(chosen, only, without, None, exact, {"choose-form": {"form": str(form), "chunk": chunk}})
        after, stages = run_passes(passes, build_graph(open_spec(spec, settings)))
        text = _emitted(target, after, stages, batch, tokens) if device == CPU else _gpu(target, device, after, batch, tokens)
        write(out, text, output)


def _check_device(target: Target, device: str) -> None:
    """Raises UsageError for a device that is not known, or not one for this form."""
    if device != CPU:
        from nlc.backends.gpu_code import chip_of

        chip_of(device)
        if target not in (Target.inductor, Target.ptx):
            raise UsageError(f"`--as {target}` has no `--target`; only inductor and ptx have one")
    elif target is Target.ptx:
        from nlc.backends.gpu_code import TARGETS

        raise UsageError(f"`--as ptx` needs a GPU; give `--target`: {', '.join(TARGETS)}")


def _gpu(target: Target, device: str, after: LevelGraph, batch: int, tokens: int) -> str:
    from nlc.backends.gpu_code import gpu_code

    made = gpu_code(after, device, batch, tokens, with_ptx=target is Target.ptx)
    return made.ptx() if target is Target.ptx else made.triton()


def _emitted(target: Target, after: LevelGraph, stages: tuple[Stage, ...], batch: int, tokens: int) -> str:
    if target in (Target.text, Target.json, Target.svg, Target.dot, Target.mermaid):
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
    from nlc.backends.mlir import mlir
    from nlc.runtime.compiling import compile_graph
    from nlc.runtime.packages import require

    require("torch_mlir")
    lowered = mlir(compile_graph(after, stages, "eager", 0, export=True), target.value, batch, tokens)
    return lowered.commented(f"{after.name}: {batch} rows of {tokens} tokens, from {after.file}")
