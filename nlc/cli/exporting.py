"""export: a compiled spec as one binary file that runs without nlc."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nlc.cli.compiling import ChunkOption, Form, FormOption
from nlc.cli.inspecting import build_graph
from nlc.cli.optimizing import ExactOption, OnlyOption, PassOption, WithoutOption, choose_passes, run_passes
from nlc.cli.session import Color, ColorOption, DebugOption, JsonOption, Session, session
from nlc.cli.specs import SetOption, SpecArgument, open_spec
from nlc.diagnostics import UsageError

if TYPE_CHECKING:
    from nlc.graph.ir import LevelGraph
    from nlc.passmanager import Stage


class Kind(enum.StrEnum):
    vmfb = "vmfb"
    pt2 = "pt2"


def export(
    spec: SpecArgument,
    kind: Annotated[Kind, typer.Option("--as", help="The form of the file.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The file to write.", show_default=False)],
    target: Annotated[str, typer.Option("--target", help="cpu; of vmfb also vulkan, metal, rocm:gfx942 .., cuda:sm_80 ..")] = "cpu",
    run: Annotated[
        Path | None, typer.Option("--run", metavar="RUN", help="Of pt2: the weights of this run of `nlc train`.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of pt2 without --run: of the first values of the weights.", show_default="0")
    ] = None,
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
    """Write an IREE module (vmfb) or a package of torch's AOTInductor (pt2), for exactly this many rows and tokens.

    vmfb: one function for a device that need not be here. Parameters, inputs and states are its arguments, outputs and new states its
    results, in the order that is printed. A target may name a chip (cpu:host, vulkan:ampere); rocm and cuda must. The samples of
    `solve: exact` are those of a stream that begins: none, a state of shape [rows, 0, ..].

    pt2: `forward` and, for one token, `step`, for CPUs like this one. Inputs and states are arguments, the weights are inside. It needs a
    C++ compiler here, and only torch where it runs.

    \b
    Example: nlc export models/gated_delta_lm --as vmfb --target cpu -o step.vmfb
             nlc export ops/gated_delta_rule --as vmfb --target rocm:gfx942 --tokens 64 -o delta.vmfb
             nlc export models/gated_delta_lm --as pt2 --run run --tokens 64 -o model.pt2
    """
    with session(color, debug, as_json) as out:
        from nlc.files import check_new
        from nlc.program.program import schedule

        _check_options(kind, output, run, seed)
        passes = choose_passes(chosen, only, without, None, exact, {"choose-form": {"form": str(form), "chunk": chunk}})
        opened = open_spec(spec, settings)
        check_new(output, force)
        before = build_graph(opened)
        after, stages = run_passes(passes, before)
        schedule(after)  # what has no program is said before torch is loaded
        if kind is Kind.vmfb:
            _vmfb(out, after, stages, output, target, batch, tokens)
        else:
            _pt2(out, before, after, stages, output, target, batch, tokens, run, seed or 0)


def _check_options(kind: Kind, output: Path, run: Path | None, seed: int | None) -> None:
    """Raises UsageError for options of the other form, and for a name that torch would not load."""
    if kind is Kind.vmfb and (run is not None or seed is not None):
        raise UsageError("weights are arguments of `--as vmfb`; `--run` and `--seed` are options of pt2")
    if run is not None and seed is not None:
        raise UsageError("the weights are those of `--run`, or drawn with `--seed`; give one of them")
    if kind is Kind.pt2 and output.suffix != ".pt2":
        raise UsageError(f"torch loads only files that end in .pt2, not `{output.name}`")


def _vmfb(out: Session, after: LevelGraph, stages: tuple[Stage, ...], output: Path, target: str, batch: int, tokens: int) -> None:
    from nlc.backends.iree import module_bytes, target_flags
    from nlc.backends.mlir import mlir
    from nlc.files import write_atomically
    from nlc.runtime.compiling import compile_graph
    from nlc.runtime.packages import require

    target_flags(target)
    require("torch_mlir", "iree.compiler")
    compiled = compile_graph(after, stages, "eager", 0, export=True)
    out.progress(f"lowering {after.name} ..")
    lowered = mlir(compiled, "linalg", batch, tokens)
    out.progress(f"compiling for {target} ..")
    write_atomically(output, module_bytes(compiled, lowered, target))
    if out.as_json:
        size, signature = output.stat().st_size, {"arguments": lowered.arguments, "results": lowered.results}
        out.json({"file": str(output), "bytes": size, "target": target, "function": after.name, **signature})
    else:
        out.result("\n".join([f"{after.name} -> {', '.join(lowered.results)}", *(f"  {text}" for text in lowered.arguments)]))
        out.message(f"wrote {output}")


def _pt2(
    out: Session,
    before: LevelGraph,
    after: LevelGraph,
    stages: tuple[Stage, ...],
    output: Path,
    target: str,
    batch: int,
    tokens: int,
    run: Path | None,
    seed: int,
) -> None:
    from nlc.backends.aot import package, require_target
    from nlc.files import write_atomically
    from nlc.graph.identity import graph_hash
    from nlc.runtime.checkpoint import load_parameters
    from nlc.runtime.compiling import compile_graph

    require_target(target)
    compiled = compile_graph(after, stages, "eager", seed, export=True)
    weights = f"first values of seed {seed}" if any(True for _ in compiled.parameters()) else "none"
    if run is not None:
        weights = f"{run.resolve().name} at step {load_parameters(compiled, run, graph_hash(before))}"
    made = package(compiled, batch, tokens, weights, out.progress)
    write_atomically(output, made.content)
    size, times = len(made.content), {"load_ms": round(made.load_ms, 1), "reload_ms": round(made.reload_ms, 1)}
    if out.as_json:
        models = {
            model: {"arguments": [str(argument) for argument in arguments], "results": made.results}
            for model, arguments in made.arguments.items()
        }
        about = {"file": str(output), "bytes": size, "target": target, "weights": weights, **times}
        out.json({**about, "models": models})
    else:
        for model, arguments in made.arguments.items():
            out.result("\n".join([f"{model} -> {', '.join(made.results)}", *(f"  {argument}" for argument in arguments)]))
        loads = f"loads in {made.load_ms:,.0f} ms, again in {made.reload_ms:,.0f} ms"
        out.message(f"wrote {output}: {size:,} bytes, {loads}; weights: {weights}")
