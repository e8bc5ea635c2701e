"""Every example runs; what it prints is what its docstring promises."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(example: str, *options: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / example), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart_streams_equally_in_pieces() -> None:
    out = run("quickstart.py", "--backend", "eager")

    assert "outputs (1, 200, 2, 24)" in out
    assert float(out.split("difference between the two: ")[1].split()[0]) < 1e-5
    assert "def S_chunkwise(" in out


def test_packed_documents_do_not_see_each_other() -> None:
    out = run("packed_documents.py", "--backend", "eager")

    assert "documents 3" in out
    assert float(out.split("largest difference: ")[1]) < 1e-5


@pytest.mark.parametrize("steps", [25])
def test_own_block_learns(steps: int) -> None:
    out = run("own_block.py", "--backend", "eager", "--steps", str(steps))

    losses = [float(line.split()[-1]) for line in out.splitlines() if line.startswith("step")]
    assert losses[0] > 4
    assert losses[-1] < 0.5


def test_rules_are_compared() -> None:
    out = run("optimizers_compare", "--quick")

    assert "| rule of the matrices | rate |" in out
    assert all(f"| {rule} |" in out for rule in ("AdamW", "Muon", "M3, sums as printed", "M3, averages"))


def test_classes_come_in_stages() -> None:
    out = run("class_incremental", "--quick")

    assert "| Transformer | outer steps, new stream |" in out
    ways = ("outer steps, new stream", "outer steps, after reading", "levels alone after stage 1")
    assert all(f"| {model} | {way} |" in out for model in ("one level", "three levels", "Hope") for way in ways)


def test_two_corpora_come_one_after_the_other() -> None:
    out = run("two_corpora", "--quick")

    models = ("frozen Transformer", "fine-tuned Transformer", "sequential", "nested", "independent", "Hope")
    assert all(f"| {model} |" in out for model in models)
    assert "nan" not in out


def test_strings_of_formal_languages_are_told() -> None:
    out = run("formal_languages", "--quick")

    assert "| language | Transformer: to 40 |" in out
    assert "Hope: 41 to 100" in out
    assert all(f"| {language} |" in out for language in ("parity", "a^n b^n c^n"))
