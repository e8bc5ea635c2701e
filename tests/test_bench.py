"""The comparison with peers runs: tiny sizes, nothing compiled, and a page from its file."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def bench(*arguments: str) -> str:
    return subprocess.run([sys.executable, "-m", "bench.algebra", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_sections_write_rows_and_the_page_reads_them(tmp_path: Path) -> None:
    out = tmp_path / "algebra.json"

    bench("--quick", "linear", "ttt", "decode", "--out", str(out))
    report = json.loads(out.read_text())
    page = bench("--page", "--out", str(out))

    assert [len(report["sections"][name]) for name in ("linear", "ttt", "decode")] == [1, 1, 16]
    assert not any(report["left_out"].values())
    assert all(row["differences"][0] < 2e-5 for name in ("linear", "ttt") for row in report["sections"][name])
    assert page.count("\n| ttt_linear") == 1
