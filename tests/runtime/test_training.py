"""Training: resuming bit for bit, stopping, and what can go wrong."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nlc
from nlc.diagnostics import DataError, SpecError, UsageError
from nlc.runtime import checkpoint
from nlc.runtime.determinism import deterministic
from nlc.runtime.run_folder import Record, read_metrics
from nlc.runtime.text import load_text
from nlc.runtime.training import TrainResult, train

MODEL = "models/gated_delta_lm"
DIMS = {"d": 16, "layers": 2}
TINY: dict[str, Any] = {"dims": DIMS, "batch": 2, "length": 32, "backend": "eager", "eval_bytes": 256, "eval_every": 0, "threads": 1}


def _tiny(out: Path, steps: int, **settings: Any) -> TrainResult:
    return train(MODEL, steps=steps, out=out, **{**TINY, **settings})


def _bits(result: TrainResult) -> dict[str, Tensor]:
    saved = checkpoint.load(result.run)
    return {**saved.parameters, **{f"optimizer {name}": x for name, x in saved.optimizer.items()}}


def _assert_same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def _measured(records: list[Record]) -> list[tuple[float, float]]:
    return [(record["step"], record["loss"]) for record in records]


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    result = _tiny(tmp_path / "run", 30, batch=4, log_every=1)

    assert result.step == 30
    assert result.metrics[-1]["bits_per_byte"] < result.metrics[0]["bits_per_byte"] - 0.5
    assert result.last("validation_bits_per_byte") is not None


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_a_loss_without_new_states_has_the_same_gradients(backend: str) -> None:
    compiled = nlc.compile(MODEL, dims=DIMS, backend=backend)
    tokens = {"tokens": torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(0))}

    (loss, _, states), (short, _, none) = compiled.loss(tokens), compiled.loss(tokens, carry=False)

    assert loss == short
    assert any(key.endswith(".S") for key in states)
    assert not any(key.endswith(".S") for key in none)
    for left, right in zip(*(torch.autograd.grad(x, list(compiled.parameters())) for x in (loss, short)), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("stop", [1, 4])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(tmp_path: Path, stop: int) -> None:
    whole = _tiny(tmp_path / "whole", 6, log_every=1)
    _tiny(tmp_path / "parts", stop, log_every=1)

    resumed = _tiny(tmp_path / "parts", 6, log_every=1, resume=True)

    _assert_same_bits(_bits(whole), _bits(resumed))
    assert _measured(read_metrics(whole.run)) == _measured(read_metrics(resumed.run))


def test_resuming_forgets_the_metrics_after_the_checkpoint(tmp_path: Path) -> None:
    run = _tiny(tmp_path / "run", 4, save_every=2, log_every=1).run
    (run / "LATEST").write_text("00000002\n")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')

    _tiny(run, 5, log_every=1, resume=True)

    assert [record["step"] for record in read_metrics(run)] == [1, 2, 3, 4, 5]


def _repeated_step(backend: str, threads: int, batch: int, length: int, dims: dict[str, int]) -> None:
    """One step, 20 times from the same state."""
    with deterministic(threads):
        compiled: Any = nlc.compile(MODEL, dims, backend=backend)
        inputs = load_text("builtin").batch(0, 0, batch, length)
        start = {name: x.clone() for name, x in compiled.state_dict().items()}
        results = []
        for _ in range(20):
            compiled.load_state_dict(start)
            loss, optimizer = compiled.train_step(inputs)
            results.append({"loss": loss, **{name: x.clone() for name, x in compiled.state_dict().items()}, **optimizer})

    for result in results[1:]:
        _assert_same_bits(results[0], result)


def test_a_step_from_the_same_state_gives_the_same_bits() -> None:
    _repeated_step("eager", 2, 4, 32, DIMS)


@pytest.mark.inductor
def test_a_compiled_step_from_the_same_state_gives_the_same_bits() -> None:
    _repeated_step("inductor", 2, 4, 128, {"d": 32, "layers": 1})


@pytest.mark.inductor
def test_a_compiled_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "backend": "inductor",
        "threads": 2,
        "dims": {"d": 32, "layers": 1},
        "batch": 4,
        "length": 128,
        "eval_bytes": 1024,
    }
    whole = _tiny(tmp_path / "whole", 4, **settings)
    _tiny(tmp_path / "parts", 2, **settings)

    resumed = _tiny(tmp_path / "parts", 4, resume=True, **settings)

    _assert_same_bits(_bits(whole), _bits(resumed))


def test_a_run_says_what_it_is(tmp_path: Path) -> None:
    run = _tiny(tmp_path / "run", 1).run

    config = json.loads((run / "config.json").read_text())

    assert config["settings"] == {"batch": 2, "length": 32, "seed": 0, "backend": "eager", "threads": 1}
    assert config["deterministic"] is True
    assert config["dims"] == DIMS
    assert config["versions"]["torch"] == torch.__version__
    assert (run / "spec" / config["spec_copy"]).read_text() == (Path(nlc.specs.__path__[0]) / "models/gated_delta_lm.yaml").read_text()


def test_the_deterministic_setting_ends_with_the_training(tmp_path: Path) -> None:
    threads = torch.get_num_threads()

    _tiny(tmp_path / "run", 1)

    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_ctrl_c_saves_after_the_step_that_runs(tmp_path: Path) -> None:
    def press(record: Record) -> None:
        if record["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    result = _tiny(tmp_path / "run", 100, save_every=50, progress=press)

    assert (result.interrupted, result.step) == (True, 3)
    assert checkpoint.load(result.run).step == 3
    assert signal.getsignal(signal.SIGINT) is before


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    spec = tmp_path / "hot.yaml"
    text = (Path(nlc.specs.__path__[0]) / "models/gated_delta_lm.yaml").read_text()
    spec.write_text(text.replace("optimizers/adamw_clipped", "optimizers/sgd").replace("lr: 3.0e-3", "lr: 1.0e+30"))

    with pytest.raises(DataError) as error:
        train(spec, steps=50, out=tmp_path / "run", **TINY)

    (diagnostic,) = error.value.diagnostics
    assert diagnostic.code == "NLC730"
    assert "step" in diagnostic.message
    saved = checkpoint.load(tmp_path / "run")
    assert saved.step == 0
    assert all(torch.isfinite(x).all() for x in saved.parameters.values())


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"batch": 3}, "NLC725"),
        ({"length": 16}, "NLC725"),
        ({"seed": 1}, "NLC725"),
        ({"threads": 2}, "NLC725"),
        ({"dims": {"d": 16, "layers": 1}}, "NLC724"),
        ({"params": {}, "dims": {"d": 32, "layers": 2}}, "NLC724"),
    ],
)
def test_a_run_goes_on_only_as_it_began(tmp_path: Path, changed: dict[str, Any], code: str) -> None:
    run = _tiny(tmp_path / "run", 1).run

    with pytest.raises(DataError) as error:
        _tiny(run, 2, resume=True, **changed)

    assert error.value.diagnostics[0].code == code


def test_a_run_goes_on_only_with_its_text(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"abcd " * 200)
    run = _tiny(tmp_path / "run", 1, text=text).run
    text.write_bytes(b"abce " * 200)

    with pytest.raises(DataError) as error:
        _tiny(run, 2, resume=True, text=text)

    assert error.value.diagnostics[0].code == "NLC725"


@pytest.mark.parametrize(("resume", "code"), [(True, "NLC720"), (False, "NLC721")])
def test_a_folder_without_a_run(tmp_path: Path, resume: bool, code: str) -> None:
    (tmp_path / "note.txt").write_text("mine")

    with pytest.raises(DataError) as error:
        _tiny(tmp_path, 1, resume=resume)

    assert error.value.diagnostics[0].code == code
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_an_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")

    with pytest.raises(DataError) as error:
        _tiny(tmp_path / "run", 1)

    assert error.value.exit_code == 4
    assert (tmp_path / "run").read_text() == "mine"


def test_a_run_under_a_file_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")

    with pytest.raises(DataError) as error:
        _tiny(tmp_path / "file" / "run", 1)

    assert error.value.exit_code == 4


def test_a_spec_that_is_no_language_model(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as error:
        train("ops/delta_rule", steps=1, out=tmp_path / "run", backend="eager")

    assert error.value.diagnostics[0].code == "NLC713"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch": 0}, {"length": -1}, {"backend": "reference"}])
def test_wrong_numbers(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        train(MODEL, **{**TINY, "steps": 1, "out": tmp_path / "run", **wrong})


def test_a_period_that_a_run_never_reaches_is_said(tmp_path: Path) -> None:
    dims = {"d": 16, "m": 16, "h": 16, "layers": 1, "fast": 8, "middle": 16, "slow": 64}

    result = train("models/hope", steps=1, out=tmp_path / "run", **{**TINY, "dims": dims})
    averaged = train("models/diloco_lm", steps=2, out=tmp_path / "other", **{**TINY, "dims": {"d": 16, "layers": 1}})

    assert result.notes == ["never updated, since a row has 32: every 64 tokens, y.0.o.Mk, y.0.o.Mv, y.0.o.Meta, y.0.o.Malpha, y.0.y.F3"]
    assert averaged.notes == ["never updated, since the run has 2: every 100 steps, slow"]
