"""Two corpora one after the other: Shakespeare, technical English, Shakespeare again; bits per byte of both after each phase.

All models make outer steps in the first phase. After it the frozen model does nothing, fine-tuning makes outer steps on the corpus of the
phase, and the models with levels make none: one stream of the corpus of each phase goes through them, and their levels learn from it.
Held-out text is read in rows as long as the shortest period, from the state that the phase left, so nothing learns while it is measured.
What comes out is written beside this file, whatever it is.
Run: python examples/two_corpora FILE [--seeds N] [--rate RATE]     (FILE is the text of Shakespeare; the plot needs matplotlib)
     python examples/two_corpora --quick      (parts of the built-in text, a few steps, nothing written: does it run?)
"""

import argparse
import json
import math
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import nlc
from nlc.runtime.compiled import CompiledSpec
from nlc.runtime.process import set_up
from nlc.runtime.text import BUILTIN, Corpus, corpus_of, load_text, streams

HERE = Path(__file__).parent
LEARNERS = {"sequential": "sequential", "nested": "nested", "independent": "independent", "Hope": "hope"}
"""Models whose levels learn in the stream."""
RATE = 0.01
FAST = 64
"""Bytes of the shortest period."""
CORPORA = ("Shakespeare", "technical English")
PHASES = (0, 1, 0)
State = dict[str, Tensor]
Bits = list[float]


@dataclass(frozen=True)
class Settings:
    """first_steps: outer steps of the first phase; steps: outer steps, or calls of the stream, of the others, of as many bytes."""

    first_steps: int = 200
    steps: int = 64
    rows: int = 16
    length: int = 128
    tested: int = 1 << 15


def spread(state: State, compiled: CompiledSpec, rows: int) -> State:
    """A state for so many rows: row i goes on as row i modulo the rows that there are; what all rows share stays."""
    one, two = compiled.initial_state(1), compiled.initial_state(2)
    of_rows = {key for key in state if key not in one or one[key].shape != two[key].shape}
    return {key: x[torch.arange(rows) % len(x)] if key in of_rows else x for key, x in state.items()}


@torch.no_grad()
def bits(compiled: CompiledSpec, corpus: Corpus, state: State | None, s: Settings) -> float:
    """Bits per byte of the begin of the held-out text."""
    (data,) = streams(corpus.validation_N, s.tested // FAST, FAST, s.tested)[:1]
    begun = None if state is None else spread(state, compiled, len(data["tokens"]))
    outputs, _ = compiled({"tokens": data["tokens"]}, begun)
    return float(F.cross_entropy(outputs["logits"].flatten(0, 1), data["targets"].flatten())) / math.log(2)


def both(compiled: CompiledSpec, corpora: list[Corpus], state: State | None, s: Settings) -> Bits:
    return [bits(compiled, corpus, state, s) for corpus in corpora]


def outer_steps(compiled: CompiledSpec, corpus: Corpus, seed: int, phase: int, optimizer: State | None, s: Settings) -> State | None:
    for step in range(s.steps if phase else s.first_steps):
        _, optimizer = compiled.train_step(corpus.batch(seed, 1000 * phase + step, s.rows, s.length), optimizer)
    return optimizer


@torch.no_grad()
def read(compiled: CompiledSpec, corpus: Corpus, phase: int, state: State | None, s: Settings) -> State | None:
    """A stream goes on through the corpus; the third phase reads the second half of what it cuts into rows."""
    calls = streams(corpus.train_N, s.rows, s.length, s.steps * s.rows * s.length * phase)
    for call in calls[-s.steps :]:
        _, _, state = compiled.loss(call, state)
    return state


def fine_tuned(corpora: list[Corpus], seed: int, s: Settings) -> dict[str, list[Bits]]:
    """The Transformer after each phase, and the same frozen after the first."""
    compiled, optimizer, found = nlc.compile(HERE / "transformer.yaml", backend="eager", seed=seed), None, list[Bits]()
    for phase, corpus in enumerate(PHASES):
        optimizer = outer_steps(compiled, corpora[corpus], seed, phase, optimizer, s)
        found.append(both(compiled, corpora, None, s))
    return {"frozen Transformer": [found[0]] * len(PHASES), "fine-tuned Transformer": found}


def streamed(compiled: CompiledSpec, corpora: list[Corpus], s: Settings) -> list[Bits]:
    """A model with levels after each phase; the stream begins with the second."""
    found, state = [both(compiled, corpora, None, s)], None
    for phase in range(1, len(PHASES)):
        state = read(compiled, corpora[PHASES[phase]], phase, state, s)
        found.append(both(compiled, corpora, state, s))
    return found


def with_levels(model: str, rate: float, corpora: list[Corpus], seed: int, s: Settings) -> list[Bits]:
    compiled = nlc.compile(HERE / f"{LEARNERS[model]}.yaml", params={"rate": rate}, backend="eager", seed=seed)
    outer_steps(compiled, corpora[0], seed, 0, None, s)
    return streamed(compiled, corpora, s)


def compare(corpora: list[Corpus], seed: int, rate: float, s: Settings, only: list[str] | None = None) -> dict[str, list[Bits]]:
    """For each model, or those with levels named, the bits per byte of both corpora after each phase."""
    runs = fine_tuned(corpora, seed, s) if only is None else {}
    for model in only or LEARNERS:
        runs[model] = with_levels(model, rate, corpora, seed, s)
        print(f"{model}, seed {seed}: {[[round(x, 3) for x in each] for each in runs[model]]}", flush=True)
    return runs


def cell(runs: list[list[Bits]], phase: int, corpus: int) -> str:
    """Mean and standard deviation over the seeds."""
    found = [run[phase][corpus] for run in runs]
    if not all(map(math.isfinite, found)):
        return "not finite"
    return f"{statistics.mean(found):.3f} ± {statistics.stdev(found) if len(found) > 1 else 0:.3f}"


def table(models: dict[str, Any]) -> str:
    heads = [f"{CORPORA[corpus]}, after {phase + 1}" for corpus in (0, 1) for phase in range(len(PHASES))]
    rows = ["| model | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for model, runs in models.items():
        cells = [cell(runs, phase, corpus) for corpus in (0, 1) for phase in range(len(PHASES))]
        rows.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def draw(models: dict[str, Any], file: Path) -> None:
    """A panel for each corpus; means, and the range of the seeds."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    phases = range(1, len(PHASES) + 1)
    for corpus, axes in enumerate(panels):
        for model, runs in models.items():
            points = [[run[phase - 1][corpus] for run in runs] for phase in phases]
            (line,) = axes.plot(phases, [statistics.mean(each) for each in points], "o-", label=model)
            axes.fill_between(phases, [min(each) for each in points], [max(each) for each in points], alpha=0.2, color=line.get_color())
        axes.set(title=f"held-out {CORPORA[corpus]}", ylabel="bits per byte", xticks=phases)
        axes.set_xticklabels([f"after {phase}: {CORPORA[PHASES[phase - 1]]}" for phase in phases], fontsize=8)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.savefig(file, dpi=90)


def tried(corpora: list[Corpus], rates: list[float], s: Settings) -> None:
    """Rates of the levels on a seed of its own, for the sequential wiring; nothing is written."""
    for rate in rates:
        print(f"rate {rate:g}: {with_levels('sequential', rate, corpora, 100, s)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--only", choices=LEARNERS, action="append", help="this model; those of results.json stay")
    parser.add_argument("--try-rate", type=float, action="append", help="only try these on a seed of its own")
    options = parser.parse_args()
    set_up()
    english, s = load_text(BUILTIN), Settings()
    if options.quick or options.file is None:
        half = corpus_of(bytes(english.train_N[:100_000].tolist()), "a stand-in")
        found = compare([half, english], 0, options.rate, replace(s, first_steps=2, steps=2, tested=1 << 11))
        print(table({model: [run] for model, run in found.items()}))
        return
    corpora = [load_text(options.file), english]
    if options.try_rate:
        tried(corpora, options.try_rate, s)
        return
    models: dict[str, Any] = json.loads((HERE / "results.json").read_text(encoding="utf-8"))["models"] if options.only else {}
    models |= {model: [] for model in options.only or ()}
    for seed in range(options.seeds):
        for model, run in compare(corpora, seed, options.rate, s, options.only).items():
            models.setdefault(model, []).append(run)
        write({"settings": asdict(s), "rate": options.rate, "torch": torch.__version__, "models": models})
    print(table(models))


def write(results: dict[str, Any]) -> None:
    (HERE / "results.json").write_text(json.dumps(results) + "\n", encoding="utf-8")
    about = (HERE / "about.md").read_text(encoding="utf-8")
    (HERE / "report.md").write_text(about.replace("TABLE", table(results["models"])), encoding="utf-8")
    draw(results["models"], HERE / "curves.png")


if __name__ == "__main__":
    main()
