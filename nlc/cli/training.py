"""train and sample: a byte language model on a text, and text from it."""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nlc.cli.compiling import Backend
from nlc.cli.session import INTERRUPTED, Color, ColorOption, DebugOption, JsonOption, Session, session
from nlc.cli.specs import SetOption, SpecArgument, open_spec
from nlc.diagnostics import UsageError

if TYPE_CHECKING:
    from nlc.runtime.training import TrainResult

BackendOption = Annotated[Backend, typer.Option("--backend", help="What runs the generated module.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of parameters, batches and samples.")]


def train(
    spec: SpecArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="RUN", help="The folder of the run.", show_default=False)],
    steps: Annotated[int, typer.Option("--steps", min=1, help="The number of updates.", show_default=False)],
    text: Annotated[
        str, typer.Option("--text", metavar="FILE|builtin", help="A file, or the English text that comes with Python.")
    ] = "builtin",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Rows a step.")] = 8,
    length: Annotated[int, typer.Option("--length", min=1, help="Bytes a row.")] = 256,
    seed: SeedOption = 0,
    backend: BackendOption = Backend.inductor,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run, as if it had not stopped.")] = False,
    begin: Annotated[
        Path | None, typer.Option("--from", metavar="RUN", help="Begin with the weights and states of another run.", show_default=False)
    ] = None,
    states: Annotated[
        list[str] | None,
        typer.Option("--state", metavar="OLD=NEW", help="With --from: what a learner of its rules goes on as; OLD= gives it up."),
    ] = None,
    settings: SetOption = None,
    log_every: Annotated[int, typer.Option("--log-every", min=1, help="Steps between lines of metrics.jsonl.")] = 10,
    eval_every: Annotated[int, typer.Option("--eval-every", min=0, help="Steps between validations; 0: at the end.")] = 100,
    save_every: Annotated[int, typer.Option("--save-every", min=0, help="Steps between checkpoints; 0: at the end.")] = 100,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write RUN/tensorboard for TensorBoard.")] = False,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads of torch.", show_default=False)] = None,
    as_json: JsonOption = False,
    color: ColorOption = Color.auto,
    debug: DebugOption = False,
) -> None:
    """Train a byte language model on a text; the run (metrics, checkpoint, spec) is left in a folder.

    Ctrl-C saves a checkpoint first. With the same spec, text, settings and versions the bits are the same.

    \b
    Example: nlc train models/gated_delta_lm --steps 200 -o run
             nlc train models/gated_delta_lm --steps 400 -o run --resume
             nlc train other.yaml --steps 100 -o run2 --from run --state weights.s=
    """
    with session(color, debug, as_json) as out:
        chosen = open_spec(spec, settings)
        from nlc.runtime import training
        from nlc.runtime.process import set_up
        from nlc.runtime.progress import on_terminal

        set_up()
        with on_terminal(steps) as progress:
            result = training.train(
                chosen.spec,
                text,
                steps=steps,
                out=output,
                batch=batch,
                length=length,
                seed=seed,
                backend=str(backend),
                resume=resume,
                begin=begin,
                names=_names(states or []),
                dims=chosen.dims,
                params=chosen.params,
                log_every=log_every,
                eval_every=eval_every,
                save_every=save_every,
                threads=threads,
                tensorboard=tensorboard,
                progress=progress,
                library=chosen.library,
            )
        _report(out, result)


def _names(states: list[str]) -> dict[str, list[str] | None]:
    """`OLD=NEW` for each state; several for one learner go on as each of them."""
    found: dict[str, list[str] | None] = {}
    for text in states:
        old, equals, new = text.partition("=")
        if not equals or not old:
            raise UsageError(f"`--state {text}` is no `OLD=NEW`, such as `--state weights.m=matrices.m1` or `--state weights.s=`")
        found[old] = [*(found.get(old) or []), new] if new else None
    return found


MEASURED = ("loss", "bits_per_byte", "validation_bits_per_byte", "tokens_per_second")


def _report(out: Session, result: TrainResult) -> None:
    for note in result.notes:
        out.message(f"note: {note}")
    measured = {name: value for name in MEASURED if (value := result.last(name)) is not None}
    if out.as_json:
        out.json({"run": str(result.run), "step": result.step, "interrupted": result.interrupted, **measured})
    else:
        shown = [f"{name.replace('_', ' ')} {value:,.4g}" for name, value in measured.items()]
        out.result(", ".join([f"{result.run}: step {result.step}", *shown]))
    if result.interrupted:
        out.message("interrupted; `--resume` goes on")
        raise typer.Exit(INTERRUPTED)


def sample(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run of `nlc train`.", show_default=False)],
    prompt: Annotated[str, typer.Option("--prompt", help="The text to go on from; a line break if empty.")] = "\n",
    tokens: Annotated[int, typer.Option("--tokens", min=0, help="The number of bytes.")] = 200,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0 takes the likeliest byte.")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Only the k likeliest bytes; 0: all.")] = 0,
    seed: SeedOption = 0,
    read: Annotated[
        str | None, typer.Option("--read", metavar="LEARNER", help="Take weights as a learner over them holds them.", show_default=False)
    ] = None,
    backend: BackendOption = Backend.eager,
    color: ColorOption = Color.auto,
    debug: DebugOption = False,
) -> None:
    """Print the prompt and what a trained model writes after it, decoding one byte a step.

    \b
    Example: nlc sample run --prompt "The " --tokens 300 --temperature 0.8
    """
    with session(color, debug):
        from nlc.runtime.sampling import stream

        prompt = prompt or "\n"
        written = stream(run, prompt, tokens, temperature, top_k, seed, str(backend), read)
        sys.stdout.flush()
        for piece in chain([prompt.encode(errors="replace")], written, [b"\n"]):
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
