"""Sampling, decoding step by step, and evaluation with a memory's reads set to zero."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import nlc
from nlc.diagnostics import DataError, UsageError
from nlc.graph.ablate import without_reads
from nlc.graph.verify import verify
from nlc.runtime.evaluate import bits_per_byte, same_in, same_without_reads
from nlc.runtime.run_folder import open_source
from nlc.runtime.sampling import load_run, pick, sample
from nlc.runtime.text import load_text
from nlc.runtime.training import TrainResult, train

MODEL = "models/gated_delta_lm"
DIMS = {"d": 16, "layers": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    out = tmp_path_factory.mktemp("sampling") / "run"
    return train(MODEL, steps=20, out=out, dims=DIMS, batch=4, length=64, backend="eager", eval_bytes=256, threads=1)


def test_a_sample_depends_on_its_seed_only(trained: TrainResult) -> None:
    first = sample(trained.run, "class", 20, seed=3)

    assert len(first) == 20
    assert first == sample(trained.run, "class", 20, seed=3)
    assert first != sample(trained.run, "class", 20, seed=4)
    assert first[:5] == sample(trained.run, "class", 5, seed=3)


def test_a_run_needs_no_other_file(trained: TrainResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    trained.run.rename(moved)
    monkeypatch.chdir(tmp_path)

    try:
        loaded = load_run("moved")
    finally:
        moved.rename(trained.run)

    for name, x in trained.compiled.state_dict().items():
        assert torch.equal(x, loaded.state_dict()[name])


def test_temperature_zero_takes_the_likeliest_byte(trained: TrainResult) -> None:
    first = sample(trained.run, "The ", 8, temperature=0, seed=0)

    assert first == sample(trained.run, "The ", 8, temperature=0, seed=9)
    assert first == sample(trained.run, "The ", 8, temperature=1, top_k=1)


def test_picking_follows_the_distribution() -> None:
    scores = torch.tensor([0.0, math.log(2.0), math.log(5.0)])

    drawn = [pick(scores, 1.0, 0, (i + 0.5) / 80) for i in range(80)]

    assert [drawn.count(i) for i in range(3)] == [10, 20, 50]
    assert {pick(scores, 1.0, 2, (i + 0.5) / 80) for i in range(80)} == {1, 2}
    assert pick(scores, 1.0, 0, 1 - 2**-53) == 0


@pytest.mark.parametrize("length", [1, 17, 40])
def test_step_by_step_scores_are_those_of_forward(length: int) -> None:
    compiled: Any = nlc.compile(MODEL, DIMS, backend="eager")
    rows = load_text("builtin").batch(0, 0, 2, length + 8)["tokens"]
    with torch.no_grad():
        at_once, _ = compiled({"tokens": rows})
        prefix, state = compiled({"tokens": rows[:, :length]})
        steps = [prefix["logits"]]
        for t in range(length, length + 8):
            outputs, state = compiled.step({"tokens": rows[:, t]}, state)
            steps.append(outputs["logits"].unsqueeze(1))

    torch.testing.assert_close(torch.cat(steps, 1), at_once["logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"temperature": math.nan}, {"temperature": math.inf}, {"tokens": -1}, {"top_k": -1}, {"prompt": ""}]
)
def test_wrong_numbers(trained: TrainResult, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        sample(trained.run, **wrong)


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        sample(tmp_path / "nothing", "a", 1)

    assert error.value.diagnostics[0].code == "NLC720"


def test_a_run_whose_config_is_damaged(trained: TrainResult, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"format": "nlc-r')

    with pytest.raises(DataError) as error:
        sample(tmp_path, "a", 1)

    assert error.value.diagnostics[0].code == "NLC722"


# -- evaluation ---------------------------------------------------------------------------------------------------------


def test_carrying_the_state_is_reading_the_text_at_once(trained: TrainResult) -> None:
    text = trained.corpus.validation_N[:1025]

    whole = bits_per_byte(trained.compiled, text, 2, 512)
    parts = bits_per_byte(trained.compiled, text, 2, 64)

    assert parts == pytest.approx(whole, abs=1e-5)


def test_backends_agree_on_bits_per_byte(trained: TrainResult) -> None:
    text = trained.corpus.validation_N[:129]
    reference = same_in(trained.compiled, trained.source, "reference")

    assert bits_per_byte(reference, text, 2, 32) == pytest.approx(bits_per_byte(trained.compiled, text, 2, 32), abs=1e-4)


def test_without_reads_a_memory_counts_for_nothing(trained: TrainResult) -> None:
    silent: Any = same_without_reads(trained.compiled, trained.source)
    rows = load_text("builtin").batch(0, 0, 1, 64)["tokens"]
    state = silent.initial_state(1)
    filled = {name: torch.ones_like(x) if name.endswith(".S") else x for name, x in state.items()}

    with torch.no_grad():
        empty, full = silent({"tokens": rows}, state)[0], silent({"tokens": rows}, filled)[0]
        whole = trained.compiled({"tokens": rows}, state)[0]

    assert torch.equal(empty["logits"], full["logits"])
    assert not torch.allclose(empty["logits"], whole["logits"])


def test_without_reads_keeps_names_and_changes_nothing_else() -> None:
    graph = open_source(MODEL, DIMS).graph

    silent = without_reads(graph)

    verify(silent)
    assert silent.learners.keys() == graph.learners.keys()
    assert without_reads(graph, "no_such_memory").functions == graph.functions
    compiled = nlc.compile(MODEL, DIMS, backend="eager")
    assert same_without_reads(compiled, open_source(MODEL, DIMS)).state_dict().keys() == compiled.state_dict().keys()
