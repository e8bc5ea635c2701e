"""The printed program: what runs per call, per token, per chunk and per step."""

from collections.abc import Callable
from pathlib import Path

import pytest

import nlc
from nlc.passmanager import PassManager, pipeline
from nlc.program.program import schedule
from nlc.program.text import program_text

SNAPSHOTS = Path(__file__).parent / "snapshots"
ROOT = Path(__file__).parents[2]


def _program(name: str, form: str = "auto") -> str:
    passes = pipeline(options={"choose-form": {"form": form, "chunk": 32}})
    return program_text(schedule(PassManager(passes).run(nlc.build(ROOT / "specs" / f"{name}.yaml"))[0]))


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_model(snapshot: Callable[[Path, str], None]) -> None:
    snapshot(SNAPSHOTS / "gated_delta_lm.txt", _program("models/gated_delta_lm"))


def test_copies_of_a_block_are_printed_once() -> None:
    text = _program("models/gated_delta_lm")

    assert text.count("region h(input) -> y x 5 {") == 1
    assert text.count("sweep S {") == 1


def test_clocks_nest_from_step_to_token() -> None:
    lines = _program("models/gated_delta_lm").splitlines()
    depth = {text: next(len(line) - len(line.lstrip()) for line in lines if line.lstrip().startswith(text)) for text in CLOCKS}

    assert list(depth.values()) == sorted(set(depth.values()))


CLOCKS = ("every step", "forward", "region h", "every token, in chunks of", "sweep S")


def test_recurrent_form_has_no_chunks() -> None:
    assert "every token {" in _program("ops/delta_rule", "recurrent")
    assert "every token, in chunks of" in _program("ops/delta_rule", "chunkwise")


def test_without_an_outer_level_there_is_no_step() -> None:
    text = _program("ops/momentum_delta")

    assert "every step" not in text
    assert "update" not in text


def test_bucketed_memories_share_a_sweep(tmp_path: Path) -> None:
    spec = """\
nlc: 1
name: two
dims: {H: 2, K: 4, V: 4}
inputs: {q: [H, K], k: [H, K], v: [H, V]}
levels:
  m:
    every: 1 token
    learners:
      A: {store: {matrix: [K, V]}, per: [H], learn: {key: k, value: v}}
      B: {store: {matrix: [K, V]}, per: [H], learn: {key: q, value: v}}
outputs: {o: A(q) + B(k)}
"""
    (tmp_path / "two.yaml").write_text(spec, encoding="utf-8")
    text = program_text(schedule(PassManager().run(nlc.build(tmp_path / "two.yaml"))[0]))

    assert "sweep A, B side by side {" in text
