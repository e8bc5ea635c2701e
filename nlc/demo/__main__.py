"""Check, draw, compile and train a model on text that Python brings along, then let it write; under four minutes on two cores.

python -m nlc.demo [--out out/demo] [--steps 200] [--backend inductor]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlc.diagnostics import BackendError, NlcError

if TYPE_CHECKING:
    from nlc.graph.ir import LevelGraph
    from nlc.passmanager import Stage
    from nlc.runtime.text import Corpus
    from nlc.runtime.training import TrainResult

SPEC = "models/gated_delta_lm"
PROMPT = "The "
BATCH, LENGTH = 8, 256


@dataclass
class Demo:
    """What the stages hand on, and the rows of the summary."""

    out: Path
    steps: int
    backend: str
    began: float = field(default_factory=time.perf_counter)
    rows: list[tuple[str, str]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        print(f"{title} ..", flush=True)
        before = time.perf_counter()
        yield
        print(f"   {time.perf_counter() - before:.1f} s", flush=True)

    def row(self, name: str, text: str, **figures: Any) -> None:
        self.rows.append((name, text))
        self.figures |= figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m nlc.demo", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="the folder for everything (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="training steps (default: %(default)s)")
    parser.add_argument("--backend", choices=("inductor", "eager"), default="inductor", help="what trains (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        run(Demo(arguments.out, arguments.steps, arguments.backend))
    except NlcError as error:
        print(error if error.exit_code != 70 else f"error: {error}: this is a bug of nlc", file=sys.stderr)
        return error.exit_code
    return 0


def run(demo: Demo) -> None:
    with demo.stage(f"check {SPEC}: names, shapes, clocks, causality, a program"):
        graph, after, stages = check()
    with demo.stage("draw and write every stage of the compiler"):
        write_stages(demo, graph, after, stages)
    with demo.stage("train one step eagerly, for comparison"):
        corpus, first = measure_eager(demo)
    with demo.stage(f"compile and train for {demo.steps} steps of {BATCH} x {LENGTH} bytes"):
        result = train_model(demo)
    with demo.stage("validate, with the memories and with their reads set to zero"):
        validate(demo, result, corpus, first)
    with demo.stage("write"):
        text = write(demo, result)
    finish(demo, text)


def check() -> tuple[LevelGraph, LevelGraph, tuple[Stage, ...]]:
    from nlc.api import build
    from nlc.passmanager import PassManager, pipeline
    from nlc.program.program import schedule

    graph = build(SPEC)
    after, stages = PassManager(pipeline()).run(graph)
    schedule(after)
    return graph, after, stages


def write_stages(demo: Demo, graph: LevelGraph, after: LevelGraph, stages: tuple[Stage, ...]) -> None:
    from nlc.cli.artefacts import artefacts, with_manifest
    from nlc.cli.specs import open_spec
    from nlc.files import write_folder
    from nlc.graph.order import levels

    files, _ = with_manifest(artefacts(graph, after, stages), open_spec(SPEC), graph, stages, {})
    write_folder(demo.out / "compiled", files)
    names = [f"{level.id} ({len(level.learners)})" for level in levels(after)]
    demo.row("levels (learners)", ", ".join(names), levels=names)
    fired = [stage.name for stage in stages if stage.changed]
    demo.row("passes that fired", ", ".join(fired), passes=fired)


def measure_eager(demo: Demo) -> tuple[Corpus, float]:
    """The text, and the bits per byte of the untrained model; notes the speed of eager steps on the way."""
    from nlc.api import compile as compile_spec
    from nlc.runtime.evaluate import bits_per_byte
    from nlc.runtime.text import load_text

    corpus = load_text("builtin")
    compiled: Any = compile_spec(SPEC, backend="eager")
    demo.row("parameters", f"{sum(p.numel() for p in compiled.parameters()):,}")
    first = bits_per_byte(compiled, corpus.validation_N, BATCH, LENGTH)
    seconds = []
    for step in range(4):
        batch = corpus.batch(0, step, BATCH, LENGTH)
        before = time.perf_counter()
        compiled.train_step(batch)
        seconds.append(time.perf_counter() - before)
    rate = BATCH * LENGTH / statistics.median(seconds[1:])
    demo.row("training, eager", f"{rate:,.0f} tokens/s", eager_tokens_per_second=round(rate))
    return corpus, first


def train_model(demo: Demo) -> TrainResult:
    folder = demo.out / "run"
    if (folder / "config.json").is_file():
        shutil.rmtree(folder)
    try:
        result = _train(demo, folder)
    except BackendError as error:
        if demo.backend == "eager":
            raise
        print(f"{error}\n   going on with the backend eager", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        demo.backend = "eager"
        result = _train(demo, folder)
    rate = statistics.median(record["tokens_per_second"] for record in result.metrics[1:] or result.metrics)
    first = result.metrics[0]["seconds"]
    demo.row(
        f"training, {demo.backend}",
        f"{rate:,.0f} tokens/s, first step {first:.0f} s",
        tokens_per_second=round(rate),
        first_step_seconds=first,
    )
    return result


def _train(demo: Demo, folder: Path) -> TrainResult:
    from nlc.backends.inductor_code import missing_compiler
    from nlc.diagnostics import NOWHERE
    from nlc.runtime.codes import BackendFailed
    from nlc.runtime.process import set_up
    from nlc.runtime.progress import on_terminal
    from nlc.runtime.training import train

    missing = missing_compiler() if demo.backend == "inductor" else None
    if missing:
        raise BackendError([BackendFailed(missing, NOWHERE)])
    set_up()
    with on_terminal(demo.steps) as progress:

        def show(record: dict[str, float]) -> None:
            progress(record)
            if not sys.stderr.isatty() and (record["step"] == 1 or record["step"] % 40 == 0):
                print(f"   step {record['step']}: {record['bits_per_byte']:.3f} bits per byte", flush=True)

        options: dict[str, Any] = {"log_every": 1, "eval_every": 0, "save_every": 100, "progress": show}
        result = train(SPEC, steps=demo.steps, out=folder, batch=BATCH, length=LENGTH, backend=demo.backend, **options)
    if result.interrupted:
        raise KeyboardInterrupt
    return result


def validate(demo: Demo, result: TrainResult, corpus: Corpus, first: float) -> None:
    from nlc.runtime.evaluate import bits_per_byte, same_in, same_without_reads

    def bits(model: Any) -> float:
        return bits_per_byte(model, corpus.validation_N, BATCH, LENGTH)

    after, silent = bits(same_in(result.compiled, result.source, "eager")), bits(same_without_reads(result.compiled, result.source))
    demo.row("bits per byte before", f"{first:.3f}", before=first)
    demo.row(
        "bits per byte after",
        f"{after:.3f}  (validation text; knowing only how often each byte occurs: {_unigram(corpus):.2f})",
        after=after,
    )
    demo.row("the same, memories silenced", f"{silent:.3f}  (every read of a memory set to zero)", without_reads=silent)


def _unigram(corpus: Corpus) -> float:
    """The entropy of the bytes of the text, in bits."""
    import torch

    counts = torch.bincount(torch.cat([corpus.train_N, corpus.validation_N]).int(), minlength=256).double()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log2()).sum())


def write(demo: Demo, result: TrainResult) -> str:
    from nlc.files import write_atomically
    from nlc.runtime.sampling import sample

    written = PROMPT.encode() + sample(result.run, PROMPT, 300, temperature=0.7, seed=1)
    write_atomically(demo.out / "sample.txt", written + b"\n")
    return written.decode("utf-8", "replace")


def finish(demo: Demo, text: str) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    from nlc.files import write_atomically

    out = demo.out
    demo.row("the graph", f"{out / 'compiled' / 'graph.svg'}")
    demo.row("the generated module", f"{out / 'compiled' / 'generated.py'}")
    demo.row("passes, program, manifest", f"{out / 'compiled'}")
    demo.row("run: metrics, checkpoints", f"{out / 'run'}")
    demo.row("the sample", f"{out / 'sample.txt'}")
    demo.row("seconds in all", f"{time.perf_counter() - demo.began:.0f}", seconds=round(time.perf_counter() - demo.began, 1))
    write_atomically(out / "summary.json", json.dumps({"spec": SPEC, "backend": demo.backend, **demo.figures}, indent=2) + "\n")
    table = Table(show_header=False, title=SPEC)
    for name, value in demo.rows:
        table.add_row(name, Text(value))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(Panel(Text(text), title="what it writes"))
    console.print(table)


if __name__ == "__main__":
    # Before torch is imported: threads that wait give their core away sooner, which keeps a busy machine usable.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        code = main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
