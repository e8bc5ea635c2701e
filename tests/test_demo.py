"""The main job, with two steps of training instead of two hundred."""

import json
from pathlib import Path

import pytest

from nlc.demo.__main__ import Demo, run


@pytest.mark.slow
def test_the_demo_leaves_what_its_summary_names_and_may_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        demo = Demo(tmp_path / "demo", 2, "eager")
        run(demo)

    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary["before"] > 8
    assert {"after", "without_reads", "eager_tokens_per_second", "tokens_per_second", "levels", "passes"} <= summary.keys()
    assert (tmp_path / "demo" / "sample.txt").read_bytes().startswith(b"The ")
    for name in ("compiled/graph.svg", "compiled/generated.py", "compiled/manifest.json", "run/LATEST", "run/metrics.jsonl"):
        assert (tmp_path / "demo" / name).stat().st_size > 0
    assert "passes that fired" in capsys.readouterr().out
