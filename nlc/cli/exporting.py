"""export: a compiled spec as one binary file that runs without nlc."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from nlc.cli.compiling import ChunkOption, Form, FormOption
from nlc.cli.inspecting import build_graph
from nlc.cli.optimizing import ExactOption, OnlyOption, PassOption, WithoutOption, choose_passes, run_passes
from nlc.cli.session import Color, ColorOption, DebugOption, JsonOption, session
from nlc.cli.specs import SetOption, SpecArgument, open_spec


class Kind(enum.StrEnum):
    vmfb = "vmfb"


def export(
    spec: SpecArgument,
    kind: Annotated[Kind, typer.Option("--as", help="The form of the file.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The file to write.", show_default=False)],
    target: Annotated[str, typer.Option("--target", help="cpu, vulkan, metal, rocm:gfx942 .., cuda:sm_80 ..")] = "cpu",
    form: FormOption = Form.auto,
    chunk: ChunkOption = 0,
    chosen: PassOption = None,
    only: OnlyOption = None,
    without: WithoutOption = None,
    exact: ExactOption = False,
    settings: SetOption = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Rows.")] = 1,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens of a call.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: JsonOption = False,
    color: ColorOption = Color.auto,
    debug: DebugOption = False,
) -> None:
    """Write an IREE module (vmfb): one function of exactly this many rows and tokens, for a device that need not be here.

    Parameters, inputs and states are its arguments, outputs and new states its results, in the order that is printed.
    The samples of `solve: exact` are those of a stream that begins: none, a state of shape [rows, 0, ..].
    A target may name a chip (cpu:host, vulkan:ampere); rocm and cuda must.

    \b
    Example: nlc export models/gated_delta_lm --as vmfb --target cpu -o step.vmfb
             nlc export ops/gated_delta_rule --as vmfb --target rocm:gfx942 --tokens 64 -o delta.vmfb
    """
    with session(color, debug, as_json) as out:
        from nlc.files import check_new, write_atomically
        from nlc.program.program import schedule

        passes = choose_passes(chosen, only, without, None, exact, {"choose-form": {"form": str(form), "chunk": chunk}})
        opened = open_spec(spec, settings)
        check_new(output, force)
        after, stages = run_passes(passes, build_graph(opened))
        schedule(after)  # what has no program is said before torch is loaded
        from nlc.backends.iree import module_bytes, target_flags
        from nlc.backends.mlir import mlir
        from nlc.runtime.compiling import compile_graph
        from nlc.runtime.packages import require

        target_flags(target)
        require("torch_mlir", "iree.compiler")
        compiled = compile_graph(after, stages, "eager", 0, export=True)
        out.progress(f"lowering {after.name} ..")
        lowered = mlir(compiled, "linalg", batch, tokens)
        out.progress(f"compiling for {target} ..")
        write_atomically(output, module_bytes(compiled, lowered, target))
        if as_json:
            size, signature = output.stat().st_size, {"arguments": lowered.arguments, "results": lowered.results}
            out.json({"file": str(output), "bytes": size, "target": target, "function": after.name, **signature})
        else:
            out.result("\n".join([f"{after.name} -> {', '.join(lowered.results)}", *(f"  {text}" for text in lowered.arguments)]))
            out.message(f"wrote {output}")
