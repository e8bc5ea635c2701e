"""train and sample through the command line; what they do is tested in tests/runtime."""

import json
import sys
from pathlib import Path

import pytest

from tests.cli.running import MODEL, Ran, nlc

TEXT = "the quick brown fox jumps over the lazy dog. " * 40


def train(folder: Path, *more: str, steps: int = 2) -> Ran:
    text = folder / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    sizes = ["--set", "layers=1", "--batch", "2", "--length", "16", "--backend", "eager"]
    return nlc("train", MODEL, "--text", text, "--steps", str(steps), *sizes, "-o", folder / "run", *more)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    ran = train(folder)
    assert ran.code == 0, ran.err
    return folder / "run"


def test_train_leaves_a_run_and_prints_its_metrics(tmp_path: Path) -> None:
    ran = train(tmp_path, "--json")

    assert ran.code == 0, ran.err
    assert (ran.json["step"], ran.json["interrupted"]) == (2, False)
    assert ran.json["bits_per_byte"] > 0
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_train_goes_on_with_a_run(run: Path) -> None:
    ran = train(run.parent, "--resume", steps=3)

    assert ran.code == 0, ran.err
    assert "step 3" in ran.out


def test_train_writes_for_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs TensorBoard: pip install nlc[tensorboard]")

    ran = train(tmp_path, "--tensorboard")

    assert ran.code == 0, ran.err
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_train_says_that_tensorboard_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)

    ran = train(tmp_path, "--tensorboard")

    assert ran.code == 3
    assert "pip install 'nlc[tensorboard]'" in ran.err
    assert not (tmp_path / "run").exists()


def test_train_refuses_other_settings_and_a_used_folder(run: Path) -> None:
    other, again = train(run.parent, "--resume", "--seed", "5", steps=9), train(run.parent)

    assert (other.code, again.code) == (4, 4)
    assert "error[NLC725]" in other.err
    assert "error[NLC721]" in again.err


def test_train_refuses_bad_texts_and_specs(tmp_path: Path) -> None:
    absent = nlc("train", MODEL, "--text", tmp_path / "absent.txt", "--steps", "1", "-o", tmp_path / "run")
    no_spec = nlc("train", "models/none", "--steps", "1", "-o", tmp_path / "run")

    assert (absent.code, no_spec.code) == (4, 4)
    assert not (tmp_path / "run").exists()


def test_sample_prints_the_prompt_and_goes_on(run: Path) -> None:
    ran = nlc("sample", run, "--prompt", "the ", "--tokens", "5", "--temperature", "0")

    assert ran.code == 0, ran.err
    assert ran.out.startswith("the ")
    assert ran.out == nlc("sample", run, "--prompt", "the ", "--tokens", "5", "--temperature", "0").out


def test_sample_refuses_what_is_no_run_and_a_broken_checkpoint(run: Path, tmp_path: Path) -> None:
    no_run = nlc("sample", tmp_path)
    for path in run.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    broken = nlc("sample", run)

    assert (no_run.code, broken.code) == (4, 4)
    assert "error[NLC720]" in no_run.err
    assert "error[NLC72" in broken.err
