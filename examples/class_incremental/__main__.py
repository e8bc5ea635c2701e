"""Class-incremental learning of CLINC150 and Banking77 by models trained from scratch: accuracy after each stage, and what is forgotten.

Each model learns stage after stage, from the classes of the stage only, in two ways. By outer steps: a row is a few queries, each step
begins a new stream; it is tested on a new stream (`new`) and on one that has read queries of the stage with their labels, so that its
levels have learned from them (`read`). By its levels alone: outer steps in the first stage only, then one stream through the other
stages, from whose labels only the levels learn (`levels`). What comes out is written beside this file, whatever it is.
Run: python examples/class_incremental FOLDER [--rate MODEL=RATE] [--seeds N]     (FOLDER has the data; the plot needs matplotlib)
     python examples/class_incremental --quick      (made up queries, a few steps, nothing written: does it run?)
"""

import argparse
import json
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from queries import DATA, SLOT, UNSCORED, Queries, made_up, rows_of, tested
from torch import Tensor

import nlc
from nlc.runtime.compiled import CompiledSpec
from nlc.runtime.process import set_up

HERE = Path(__file__).parent
MODELS = {"Transformer": "transformer", "one level": "one_level", "three levels": "three_levels", "Hope": "hope"}
RATES = {"one level": 0.1, "three levels": 0.1, "Hope": 0.1}
WAYS = {"new": "outer steps, new stream", "read": "outer steps, after reading", "levels": "levels alone after stage 1"}
TESTED_AT_ONCE = 256
State = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """steps: outer steps a stage, or calls of the stream of levels alone.

    reading: calls before the test `read`; each: queries of a class in a test.
    """

    steps: int = 20
    first_steps: int = 60
    rows: int = 48
    queries: int = 2
    reading: int = 10
    each: int = 10


def spread(state: State, compiled: CompiledSpec, rows: int) -> State:
    """A state for so many rows: row i goes on as row i modulo the rows that there are; what all rows share stays."""
    one, two = compiled.initial_state(1), compiled.initial_state(2)
    of_rows = {key for key in state if key not in one or one[key].shape != two[key].shape}
    return {key: x[torch.arange(rows) % len(x)] if key in of_rows else x for key, x in state.items()}


@torch.no_grad()
def right(compiled: CompiledSpec, data: Queries, classes: list[int], seen: list[int], state: State | None, each: int) -> float:
    """The share of queries of these classes whose label comes first among all labels seen. Levels do not learn from what is tested."""
    queries_NW, labels_N = tested(data, classes, each)
    allowed = torch.tensor(seen)
    hits = 0
    for tokens_BW, labels_B in zip(queries_NW.split(TESTED_AT_ONCE), labels_N.split(TESTED_AT_ONCE), strict=True):
        begun = None if state is None else spread(state, compiled, len(tokens_BW))
        outputs, _ = compiled({"tokens": tokens_BW, "targets": torch.full_like(tokens_BW, UNSCORED)}, begun)
        hits += int((allowed[outputs["logits"][:, -1, allowed].argmax(-1)] == labels_B).sum())
    return hits / len(labels_N)


def by_stage(compiled: CompiledSpec, data: Queries, stage: int, state: State | None, each: int) -> list[float]:
    """Accuracy on the classes of each stage so far."""
    seen = [label for classes in data.stages[: stage + 1] for label in classes]
    return [right(compiled, data, classes, seen, state, each) for classes in data.stages[: stage + 1]]


@torch.no_grad()
def read(compiled: CompiledSpec, data: Queries, stage: int, seed: str, calls: int, state: State | None, s: Settings) -> State | None:
    """A stream goes on through queries of a stage, with their labels."""
    for call in range(calls):
        rows = rows_of(data, data.stages[stage], f"{seed} {stage} {call} read", s.rows, s.queries)
        _, _, state = compiled.loss(rows, state)
    return state


def outer_steps(compiled: CompiledSpec, data: Queries, stage: int, seed: str, optimizer: State | None, s: Settings) -> State | None:
    for step in range(s.steps if stage else s.first_steps):
        rows = rows_of(data, data.stages[stage], f"{seed} {stage} {step}", s.rows, s.queries)
        _, optimizer = compiled.train_step(rows, optimizer)
    return optimizer


def one(compiled: CompiledSpec, data: Queries, seed: int, has_levels: bool, s: Settings) -> dict[str, list[list[float]]]:
    """For each way, accuracy on the stages so far after each stage."""
    new, after, optimizer, first = list[list[float]](), list[list[float]](), None, {}
    for stage in range(len(data.stages)):
        optimizer = outer_steps(compiled, data, stage, f"{seed}", optimizer, s)
        new.append(by_stage(compiled, data, stage, None, s.each))
        if stage == 0:
            first = {key: x.clone() for key, x in compiled.state_dict().items()}
        if has_levels:
            after.append(by_stage(compiled, data, stage, read(compiled, data, stage, f"{seed}", s.reading, None, s), s.each))
    if not has_levels:
        return {"new": new}
    compiled.load_state_dict(first)
    return {"new": new, "read": after, "levels": alone(compiled, data, f"{seed}", new[:1], s)}


def alone(compiled: CompiledSpec, data: Queries, seed: str, found: list[list[float]], s: Settings) -> list[list[float]]:
    """The stages after the first are one stream."""
    state: State | None = None
    for stage in range(1, len(data.stages)):
        state = read(compiled, data, stage, seed, s.steps, state, s)
        found = [*found, by_stage(compiled, data, stage, state, s.each)]
    return found


def accuracies(found: list[list[float]]) -> list[float]:
    """On all classes so far, after each stage; stages have equally many classes."""
    return [statistics.mean(each) for each in found]


def forgetting(found: list[list[float]]) -> float:
    """How far the stages before the last fell from their best, on average."""
    last = len(found) - 1
    return statistics.mean(max(after[stage] for after in found[stage:]) - found[last][stage] for stage in range(last))


def compare(data: Queries, models: list[str], rates: dict[str, float], seeds: list[int], s: Settings) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for model in models:
        params = {"rate": rates[model]} if model in rates else {}
        for seed in seeds:
            compiled = nlc.compile(HERE / f"{MODELS[model]}.yaml", params=params, backend="eager", seed=seed)
            for way, found in one(compiled, data, seed, bool(params), s).items():
                results.setdefault(model, {}).setdefault(way, []).append(found)
                print(f"{model}, {way}, seed {seed}: {accuracies(found)[-1]:.3f}, forgets {forgetting(found):.3f}", flush=True)
    return results


def spread_of(numbers: list[float]) -> str:
    """Mean and standard deviation, in percent."""
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return f"{100 * statistics.mean(numbers):.1f} ± {100 * deviation:.1f}"


def table(by_model: dict[str, Any]) -> str:
    rows = [
        "| model | way | first stage, % | all classes at the end, % | mean over the stages, % | forgetting, points |",
        "|---|---|---|---|---|---|",
    ]
    for model, ways in by_model.items():
        for way, runs in ways.items():
            curves = [accuracies(run) for run in runs]
            numbers = [[c[0] for c in curves], [c[-1] for c in curves], [statistics.mean(c) for c in curves], [forgetting(r) for r in runs]]
            rows.append(f"| {model} | {WAYS[way]} | " + " | ".join(map(spread_of, numbers)) + " |")
    return "\n".join(rows)


def draw(data: dict[str, Any], file: Path) -> None:
    """Mean accuracy on the classes so far, and the range of the seeds; a panel for each set and way."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(len(data), len(WAYS), figsize=(12, 3.4 * len(data)), sharey=True, layout="constrained", squeeze=False)
    for row, (name, by_model) in zip(panels, data.items(), strict=True):
        for axes, way in zip(row, WAYS, strict=True):
            for i, (model, ways) in enumerate(by_model.items()):
                points = list(zip(*(accuracies(run) for run in ways.get(way, ways["new"])), strict=True))
                stages = range(1, len(points) + 1)
                if way in ways or way == "new":
                    axes.plot(stages, [statistics.mean(each) for each in points], f"C{i}", label=model)
                    axes.fill_between(stages, [min(each) for each in points], [max(each) for each in points], alpha=0.2, color=f"C{i}")
            axes.plot(stages, [1 / stage for stage in stages], "k:", label="only the last stage is known")
            axes.set(title=f"{name}: {WAYS[way]}", xlabel="stage", ylim=(0, 1))
            axes.grid(alpha=0.3)
        row[0].set_ylabel("accuracy on the classes so far")
        row[0].legend(fontsize=8)
    figure.savefig(file, dpi=80)


def report(results: dict[str, Any]) -> str:
    text = (HERE / "about.md").read_text(encoding="utf-8")
    for name, by_model in results["data"].items():
        text = text.replace(f"TABLE {name}", table(by_model))
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="clinc150.json, clinc150_domains.json, banking77_*.csv and _categories.json")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=MODELS, help="these models; nothing is written")
    parser.add_argument("--data", action="append", choices=DATA, help="these sets; the others of results.json stay")
    parser.add_argument("--stages", type=int, default=0, help="so many stages only; nothing is written")
    parser.add_argument("--rate", action="append", default=[], help="MODEL=RATE of its levels")
    options = parser.parse_args()
    set_up()
    rates = {**RATES, **{name: float(rate) for name, rate in (each.split("=") for each in options.rate)}}
    if options.quick or options.folder is None:
        print(table(compare(made_up(HERE), list(MODELS), rates, [0], replace(Settings(), steps=2, first_steps=2, reading=1))))
        return
    file, s = HERE / "results.json", Settings()
    old = json.loads(file.read_text(encoding="utf-8"))["data"] if options.data and file.exists() else {}
    about = {"settings": asdict(s), "rates": rates, "slot": SLOT, "torch": torch.__version__}
    found: dict[str, Any] = {}
    for name in options.data or DATA:
        data = DATA[name](options.folder)
        data = replace(data, stages=data.stages[: options.stages or None])
        found[name] = {}
        for model in options.only or MODELS:
            found[name] |= compare(data, [model], rates, list(range(options.seeds)), s)
            if not (options.only or options.stages):
                write({**about, "data": {**old, **found}})
        print(table(found[name]), flush=True)


def write(results: dict[str, Any]) -> None:
    (HERE / "results.json").write_text(json.dumps(results) + "\n", encoding="utf-8")
    (HERE / "report.md").write_text(report(results), encoding="utf-8")
    draw(results["data"], HERE / "accuracy.png")


if __name__ == "__main__":
    main()
