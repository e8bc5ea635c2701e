"""AdamW, Muon and M3 on the matrices of one byte language model: equal steps, tuned rates, three seeds; curves and a table with spread.

The rate of each rule is the best of its grid on a seed of its own. What comes out is written beside this file, whatever it is.
Run: python examples/optimizers_compare [--quick] [--only RULE]     (about ten minutes on two cores; the curves need matplotlib)
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from nlc.diagnostics import DataError
from nlc.runtime.process import set_up
from nlc.runtime.training import train

HERE = Path(__file__).parent
STEPS, EVERY, TUNING, SEEDS = 200, 25, 100, (0, 1, 2)
SCHEDULE = "lr * warmup(age(self), 20)"
RULES: dict[str, tuple[str, tuple[float, ...]]] = {
    "AdamW": (f'{{adamw: {{lr: "{SCHEDULE}"}}}}', (1e-3, 3e-3, 1e-2, 3e-2)),
    "Muon": (f'{{muon: {{rate: "{SCHEDULE}"}}}}', (3e-3, 1e-2, 3e-2, 1e-1)),
    "M3, sums as printed": (f'{{m3: {{lr: "{SCHEDULE}", period: 5}}}}', (1e-5, 3e-5, 1e-4, 3e-4)),
    "M3, averages": (f'{{m3: {{lr: "{SCHEDULE}", period: 5, keep: 0.95}}}}', (3e-6, 1e-5, 3e-5, 1e-4)),
}
"""For each rule, its line of the spec and the grid of its rate."""


def run(rule: str, rate: float, seed: int, steps: int, backend: str) -> list[float]:
    """Validation bits per byte every few steps."""
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "compared.yaml"
        spec.write_text((HERE / "model.yaml").read_text().replace("RULE", RULES[rule][0]))
        options: dict[str, Any] = {
            "batch": 8,
            "length": 128,
            "eval_every": EVERY,
            "eval_bytes": 1 << 14,
            "log_every": EVERY,
            "save_every": 0,
        }
        done = train(spec, steps=steps, out=Path(folder) / "run", seed=seed, params={"lr": rate}, backend=backend, **options)
        return [record["validation_bits_per_byte"] for record in done.metrics if "validation_bits_per_byte" in record]


def compare(rules: list[str], steps: int, backend: str, grid: int, seeds: tuple[int, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for rule in rules:
        rates = RULES[rule][1]
        tried = {rate: finished(rule, rate, TUNING, steps, backend) for rate in rates[:grid]}
        best = min(tried, key=lambda rate: tried[rate][-1])
        curves = [finished(rule, best, seed, steps, backend) for seed in seeds]
        ends = [curve[-1] for curve in curves]
        spread = statistics.stdev(ends) if len(ends) > 1 else 0.0
        grid_ends = {f"{rate:g}": curve[-1] for rate, curve in tried.items()}
        found[rule] = {"grid": grid_ends, "rate": best, "curves": curves, "mean": statistics.mean(ends), "spread": spread}
        print(f"{rule}: {found[rule]['mean']:.3f} +- {spread:.3f} bits per byte at rate {best:g}; grid {grid_ends}", flush=True)
    return found


def finished(rule: str, rate: float, seed: int, steps: int, backend: str) -> list[float]:
    """A run; infinity at all points where its loss is not finite."""
    try:
        return run(rule, rate, seed, steps, backend)
    except DataError:
        return [float("inf")] * -(-steps // EVERY)


def draw(results: dict[str, Any], file: Path) -> None:
    """Mean curves, and the range of the seeds around them."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for rule, result in results["rules"].items():
        steps = [EVERY * (i + 1) for i in range(len(result["curves"][0]))]
        points = list(zip(*result["curves"], strict=True))
        (line,) = axes.plot(steps, [statistics.mean(each) for each in points], label=f"{rule} (rate {result['rate']:g})")
        axes.fill_between(steps, [min(each) for each in points], [max(each) for each in points], alpha=0.2, color=line.get_color())
    axes.set(xlabel="step", ylabel="validation bits per byte", title="Rules of the matrices of a byte model, three seeds")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=110)


def table(results: dict[str, Any]) -> str:
    rows = ["| rule of the matrices | rate | bits per byte after training, mean and standard deviation |", "|---|---|---|"]
    for rule, result in results["rules"].items():
        rows.append(f"| {rule} | {result['rate']:g} | {result['mean']:.3f} ± {result['spread']:.3f} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps of each, nothing written: does it run?")
    parser.add_argument("--only", choices=RULES, action="append", help="this rule; those of results.json stay")
    options = parser.parse_args()
    quick = options.quick
    set_up()
    settings = (4, "eager", 1, (0,)) if quick else (STEPS, "eager", 4, SEEDS)
    about = {"steps": settings[0], "batch": [8, 128], "seeds": settings[3], "tuned_on_seed": TUNING, "torch": torch.__version__}
    new, file = compare(options.only or list(RULES), *settings), HERE / "results.json"
    old = json.loads(file.read_text(encoding="utf-8"))["rules"] if options.only and not quick else {}
    results = {**about, "rules": {rule: {**old, **new}[rule] for rule in RULES if rule in old or rule in new}}
    print(table(results))
    if not quick:
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        draw(results, HERE / "curves.png")


if __name__ == "__main__":
    main()
