"""The speed of levels that learn while tokens come, against the bars, as docs/images/levels_speed.svg.

Run: python -m bench.picture        (needs matplotlib)
"""

from __future__ import annotations

import json
from pathlib import Path

from bench.memories import RESULTS

FILE = Path(__file__).parents[1] / "docs" / "images" / "levels_speed.svg"
ROWS = (
    ("hope.json", "self-modifying Titans, forward with updates", "forward with updates,\nagainst nested-learning 0.2.0"),
    ("hope.json", "self-modifying Titans, forward and backward", "forward and backward through them,\nagainst its own forward"),
    (
        "continuum.json",
        "train step, levels every 64/512/4096 tokens: times the time",
        "levels every 64, 512, 4096 tokens,\nagainst plain MLPs",
    ),
    ("continuum.json", "Hope, train step", "Hope, tokens per second of training,\nagainst a transformer of its size"),
    ("streaming.json", "sessions of Hope, mean of a period of 64", "256 sessions of Hope by one call,\nagainst one call each"),
    ("streaming.json", "small sessions, mean of a period of 64", "the same, sessions of 41 KB"),
)
"""File, row, label."""


def margin(figure: float, bar: str) -> float:
    """How many times better than its bar a figure is."""
    sense, value = bar.split()
    return figure / float(value) if sense == ">=" else float(value) / figure


def draw(file: Path) -> None:
    """A bar a row: its figure against its bar, on a scale of ratios."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.hashsalt": "nlc", "svg.fonttype": "none", "font.size": 9})
    found = {name: json.loads((RESULTS / name).read_text(encoding="utf-8"))["rows"] for name in {row[0] for row in ROWS}}
    rows = [(label, next(row for row in found[name] if row["what"] == what)) for name, what, label in ROWS]
    _, axes = pyplot.subplots(figsize=(8, 3.6), layout="constrained")
    margins = [margin(row["figure"], row["bar"]) for _, row in rows]
    bars = axes.barh([label for label, _ in rows], [each - 1 for each in margins], left=1, color="#1f6fb4", height=0.55)
    axes.bar_label(bars, [f"  {row['figure']:.3g}, bar {row['bar']}" for _, row in rows], padding=2)
    axes.axvline(1, color="#1c2128", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4], ["at the bar", "twice as good", "four times"])
    axes.set_xlim(0.9, 9)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    pyplot.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    draw(FILE)
    print(f"wrote {FILE.relative_to(Path.cwd())}")
