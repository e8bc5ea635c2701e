"""Formal languages (Nested Learning, Table 5): models are trained on strings to length 40 and tested on these lengths and on 41 to 100.

At every place a model says which symbols may follow (one class for each such set). A string counts where all its places are right.
What comes out is written beside this file, whatever it is.
Run: python examples/formal_languages [--quick] [--steps N] [--backend eager]   (a quarter of an hour; the plot needs matplotlib)
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from languages import LANGUAGES, UNSCORED, batch, test
from torch import Tensor

import nlc
from nlc.runtime.compiled import CompiledSpec
from nlc.runtime.process import set_up

HERE = Path(__file__).parent
MODELS: dict[str, tuple[str, dict[str, float]]] = {
    "Transformer": ("transformer", {}),
    "DeltaNet": ("deltanet", {}),
    "DeltaNet, rates to 2": ("deltanet", {"most": 2}),
    "Hope": ("hope", {}),
}
"""For each model its spec, and params other than those of the spec."""
BINS = {"to 40": (2, 40), "41 to 100": (41, 100)}
ROWS, LONGEST, TESTED = 16, 40, 100
SETTINGS: dict[str, Any] = {"steps": 400, "seeds": (0, 1, 2), "backend": "inductor"}


def begin(compiled: CompiledSpec, spec: Path, seed: int) -> None:
    """The first values of a seed, without compiling anew."""
    compiled.load_state_dict(nlc.compile(spec, backend="eager", seed=seed).state_dict())


def trained(compiled: CompiledSpec, language: str, seed: int, steps: int) -> float:
    """Outer steps on strings of the language; the mean loss of the last tenth."""
    losses, optimizer = list[float](), None
    for step in range(steps):
        loss, optimizer = compiled.train_step(batch(language, seed, step, ROWS, LONGEST), optimizer)
        losses.append(float(loss))
    return statistics.mean(losses[-max(1, steps // 10) :])


@torch.no_grad()
def scores(model: CompiledSpec, language: str, ends: tuple[int, int], rows: int) -> dict[str, float]:
    """Shares of strings that are right everywhere and of places that are right. Levels get no labels here."""
    data = test(language, *ends, rows)
    outputs, _ = model({"tokens": data["tokens"]})
    right_BT: Tensor = (outputs["logits"].argmax(-1) == data["targets"]) | (data["targets"] == UNSCORED)
    scored_BT = data["targets"] != UNSCORED
    places = (right_BT & scored_BT).sum() / scored_BT.sum()
    return {"strings": float(right_BT.all(1).float().mean()), "places": float(places)}


def compare(model: str, languages: list[str], steps: int, seeds: tuple[int, ...], backend: str, tested: int) -> dict[str, Any]:
    """The runs of a model: for each language, one a seed."""
    file, params = MODELS[model]
    spec, given = HERE / f"{file}.yaml", {**params, "steps": steps}
    compiled, reader = nlc.compile(spec, params=given, backend=backend), nlc.compile(spec, params=given, backend="eager")
    found: dict[str, Any] = {}
    for language in languages:
        found[language] = [one(compiled, reader, spec, language, seed, steps, tested) for seed in seeds]
        print(f"{language}, {model}: {[[run[bin]['strings'] for bin in BINS] for run in found[language]]}", flush=True)
    return found


def one(compiled: CompiledSpec, reader: CompiledSpec, spec: Path, language: str, seed: int, steps: int, tested: int) -> dict[str, Any]:
    """One training; the test reads strings of another length, so it does without compiling."""
    begin(compiled, spec, seed)
    loss = trained(compiled, language, seed, steps)
    reader.load_state_dict(compiled.state_dict())
    return {"loss": loss, **{name: scores(reader, language, ends, tested) for name, ends in BINS.items()}}


def cell(runs: list[dict[str, Any]], bin: str, share: str = "strings") -> str:
    """Mean, lowest and highest of the seeds, in percent."""
    found = [100 * run[bin][share] for run in runs]
    return f"{statistics.mean(found):.1f} ({min(found):.0f} to {max(found):.0f})"


def table(results: dict[str, Any], share: str = "strings") -> str:
    models, languages = results["models"], list(next(iter(results["models"].values())))
    rows = ["| language | " + " | ".join(f"{model}: {bin}" for model in models for bin in BINS) + " |"]
    rows.append("|---" * (1 + len(models) * len(BINS)) + "|")
    for language in languages:
        rows.append(f"| {language} | " + " | ".join(cell(found[language], bin, share) for found in models.values() for bin in BINS) + " |")
    return "\n".join(rows)


def draw(results: dict[str, Any], file: Path) -> None:
    """Bars of the means, a dot for each seed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, all_axes = pyplot.subplots(1, len(BINS), figsize=(11, 3.8), sharey=True, layout="constrained")
    for axes, bin in zip(all_axes, BINS, strict=True):
        for i, (model, by_language) in enumerate(results["models"].items()):
            found = [[100 * run[bin]["strings"] for run in runs] for runs in by_language.values()]
            places = [place + 0.2 * (i - 1.5) for place in range(len(found))]
            axes.bar(places, [statistics.mean(each) for each in found], 0.19, label=model)
            axes.plot([x for x in places for _ in found[0]], [share for each in found for share in each], "k.", markersize=3)
        axes.set(title=f"lengths {bin}", xticks=range(len(found)), ylim=(0, 105))
        axes.set_xticklabels(LANGUAGES, rotation=20)
    all_axes[0].set_ylabel("strings with all places right, percent")
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(MODELS))
    figure.savefig(file, dpi=100)


def report(results: dict[str, Any]) -> str:
    about = (HERE / "about.md").read_text(encoding="utf-8")
    return about.replace("STRINGS", table(results)).replace("PLACES", table(results, "places")).replace("STEPS", str(results["steps"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps of two languages, nothing written: does it run?")
    parser.add_argument("--steps", type=int, default=SETTINGS["steps"])
    parser.add_argument("--backend", default=SETTINGS["backend"])
    options = parser.parse_args()
    set_up()
    steps, seeds, backend = (3, (0,), "eager") if options.quick else (options.steps, SETTINGS["seeds"], options.backend)
    languages = ["parity", "a^n b^n c^n"] if options.quick else list(LANGUAGES)
    results: dict[str, Any] = {"steps": steps, "rows": ROWS, "seeds": seeds, "torch": torch.__version__, "models": {}}
    for model in MODELS:
        results["models"][model] = compare(model, languages, steps, seeds, backend, 8 if options.quick else TESTED)
        if not options.quick:
            (HERE / "results.json").write_text(json.dumps(results) + "\n", encoding="utf-8")
    print(table(results))
    if not options.quick:
        write(results)


def write(results: dict[str, Any]) -> None:
    (HERE / "report.md").write_text(report(results), encoding="utf-8")
    draw(results, HERE / "accuracy.png")


if __name__ == "__main__":
    main()
