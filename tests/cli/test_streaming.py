"""nlc stream: reads on, learns, keeps its state on disk and goes on after a kill where it was."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from nlc.cli.app import app
from nlc.runtime.training import train
from tests.cli.running import ROOT, Ran, nlc

SPEC = """
nlc: 1
name: small
dims: {vocab: 256, d: 8}
inputs: {tokens: {index: vocab}}
uses: {block: blocks/continuum, outer: optimizers/adamw_clipped}
flows:
  x: embed(tokens, vocab, d)
  y: block(x, h=16, fast=8, middle=16, slow=32, rate=0.05)
  logits: unembed(rmsnorm(y), vocab)
loss: cross_entropy(logits, next(tokens))
levels:
  training:
    every: 1 step
    learners:
      weights:
        owns: rest
        scope: shared
        read: start
        backprop: {truncated: 8 tokens}
        learn: {minimize: loss, fold: {row: mean, token: mean}, rule: {outer: {lr: 3.0e-3}}}
outputs: {logits: logits}
"""
LEVELS = ("y.F1", "y.F2", "y.F3")
TEXT = "".join(f"{i} times ü is {i * 7}; " for i in range(60)).encode()


ENDING = (
    SPEC.replace("truncated: 8", "truncated: 32")
    .replace("uses: {block: blocks/continuum, outer", "uses: {outer")
    .replace("y: block(x, h=16, fast=8, middle=16, slow=32, rate=0.05)", "y: x + F(rmsnorm(x))")
    .replace(
        "levels:\n",
        """levels:
  fast:
    every: 32 tokens
    remainder: flush
    learners: {F: {store: {mlp: [d, 16, d]}, init: learned, scope: stream, read: start, learn: {minimize: loss, rate: 0.05}}}
""",
    )
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streaming")
    (folder / "small.yaml").write_text(SPEC, encoding="utf-8")
    train(folder / "small.yaml", steps=2, out=folder / "run", batch=2, length=32, backend="eager", eval_bytes=64, threads=1)
    return folder / "run"


def records(printed: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed.splitlines()]


def told(printed: str) -> dict[int, Any]:
    """All that is told of each position but how fast it was."""
    return {record["position"]: {**record, "tokens_per_second": 0} for record in records(printed)}


def stream(*arguments: str | Path, given: bytes = b"") -> Ran:
    result = CliRunner().invoke(app, ["stream", *map(str, arguments)], input=given)
    return Ran(result.exit_code, result.stdout, result.stderr)


def text(folder: Path, data: bytes = TEXT) -> Path:
    path = folder / "text.txt"
    path.write_bytes(data)
    return path


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(path))


def are_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key].nan_to_num(), b[key].nan_to_num()) for key in a)


def test_a_line_for_each_chunk(run: Path, tmp_path: Path) -> None:
    ran = stream(run, text(tmp_path, TEXT[:90]), "--chunk", "40")

    assert ran.code == 0, ran.err
    found = records(ran.out)
    assert [(record["position"], record["tokens"]) for record in found] == [(40, 40), (80, 40), (90, 10)]
    assert [record["updates"]["y.F1"] for record in found] == [4, 9, 11]  # the label of token 40 came with the second chunk
    assert all(record["bits_per_byte"] > 0 and record["schema_version"] == 1 for record in found)


def test_levels_learn_unless_they_are_told_not_to(run: Path, tmp_path: Path) -> None:
    file = text(tmp_path, b"abcd" * 400)
    learning, still = stream(run, file, "--chunk", "400"), stream(run, file, "--chunk", "400", "--no-learn", "--state", tmp_path / "s")

    bits = {name: [record["bits_per_byte"] for record in records(ran.out)] for name, ran in (("on", learning), ("off", still))}
    assert bits["on"][-1] < bits["on"][0] - 0.2
    assert abs(bits["off"][-1] - bits["off"][1]) < 1e-5
    assert set(records(still.out)[-1]["updates"].values()) == {0}
    kept = tensors(tmp_path / "s")
    begun = load_file(next(run.glob("checkpoints/*/tensors.safetensors")))
    assert torch.equal(kept["state:y.F1.W1"][0], begun["parameter:y.F1.W1.init"])


@pytest.mark.parametrize("parts", [(0, 100, 333), (0, 64, 128)])
def test_what_comes_in_parts_goes_on(run: Path, tmp_path: Path, parts: tuple[int, ...]) -> None:
    whole = stream(run, text(tmp_path), "--state", tmp_path / "whole")
    for begin, end in zip(parts, [*parts[1:], len(TEXT)], strict=True):
        ran = stream(run, "--state", tmp_path / "parts", given=TEXT[begin:end])
        assert ran.code == 0, ran.err

    assert records(ran.out)[-1]["position"] == records(whole.out)[-1]["position"] == len(TEXT)
    a, b = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert max(float((a[key] - b[key]).abs().nan_to_num().max()) for key in a if a[key].numel()) < 1e-5


def test_a_file_is_read_on_and_another_from_its_start(run: Path, tmp_path: Path) -> None:
    file, state = text(tmp_path, TEXT[:200]), tmp_path / "folder"
    state.mkdir()
    stream(run, file, "--state", state)
    file.write_bytes(TEXT[:300])
    other = tmp_path / "other.txt"
    other.write_bytes(TEXT[:50])

    more, anew = stream(run, file, "--state", state), stream(run, other, "--state", state)

    assert (state / "stream.safetensors").is_file()
    assert sum(record["tokens"] for record in records(more.out)) == 100
    assert [record["position"] for record in records(anew.out)][-1] == 350


def test_killed_and_started_again(run: Path, tmp_path: Path) -> None:
    file = text(tmp_path, TEXT * 2)
    whole = stream(run, file, "--state", tmp_path / "whole", "--chunk", "16")
    command = [sys.executable, "-m", "nlc", "stream", str(run), str(file), "--state", str(tmp_path / "killed"), "--chunk", "16"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        before = "".join(process.stdout.readline() for _ in range(30))
        process.send_signal(signal.SIGKILL)
    assert not are_equal(tensors(tmp_path / "killed"), tensors(tmp_path / "whole"))

    again = stream(run, file, "--state", tmp_path / "killed", "--chunk", "16")

    assert again.code == 0, again.err
    assert are_equal(tensors(tmp_path / "killed"), tensors(tmp_path / "whole"))
    assert told(before) | told(again.out) == told(whole.out)
    assert len(told(again.out)) < len(told(whole.out)) - 20
    assert not list(tmp_path.glob(".*"))


def test_predictions_are_ascii_whatever_the_bytes(run: Path, tmp_path: Path) -> None:
    ran = stream(run, "--format", "predictions", "--chunk", "7", given=bytes(range(256)) + "ü".encode()[:1])

    assert ran.code == 0, ran.err
    assert ran.out.isascii()
    found = [record["predictions"] for record in records(ran.out)]
    assert len(found[0].encode("latin-1").decode("unicode_escape")) == 7


def test_ids(run: Path, tmp_path: Path) -> None:
    ids = " ".join(str(byte) for byte in TEXT[:100])
    file, state = tmp_path / "ids.txt", tmp_path / "s"
    file.write_text(ids, encoding="utf-8")

    read, plain = stream(run, file, "--ids", "--format", "predictions", "--state", state), stream(run, text(tmp_path, TEXT[:100]))
    file.write_text(f"{ids}\n1 2 3\n", encoding="utf-8")
    more = stream(run, file, "--ids", "--state", state)

    assert [r["bits_per_token"] for r in records(read.out)] == [r["bits_per_byte"] for r in records(plain.out)]
    assert len(records(read.out)[0]["predictions"]) == 64
    assert [record["tokens"] for record in records(more.out)] == [3]


def test_what_is_wrong_is_said(run: Path, tmp_path: Path) -> None:
    file, state = text(tmp_path), tmp_path / "s"
    stream(run, file, "--state", state)
    other = tmp_path / "other"
    train(run.parent / "small.yaml", steps=1, out=other, batch=2, length=32, backend="eager", eval_bytes=64, threads=1, seed=1)
    torn = tmp_path / "torn"
    torn.write_bytes(state.read_bytes()[:-5])
    foreign = next(run.glob("checkpoints/*/tensors.safetensors"))
    cases = {
        "NLC720": stream(tmp_path / "none", file),
        "NLC710": stream(run, tmp_path / "none.txt"),
        "NLC722": stream(run, file, "--state", torn),
        "NLC723": stream(run, file, "--state", foreign),
        "NLC751": stream(other, file, "--state", state),
        "NLC753": stream(run, file, "--ids"),
    }
    file.write_bytes(TEXT[:30])
    cases["NLC754"] = stream(run, file, "--state", state)

    assert {code for code, ran in cases.items() if f"error[{code}]" in ran.err} == set(cases)
    assert {ran.code for ran in cases.values()} == {4}
    assert "error[NLC753]" in stream(run, "--ids", given=b"1 2 300").err
    assert nlc("stream", run, "--state", tmp_path / "no" / "s", "--chunk", "0").code == 2


def test_a_model_without_levels_streams_too(tmp_path: Path) -> None:
    train(
        "models/gated_delta_lm", dims={"d": 16, "layers": 1}, steps=1, out=tmp_path / "run", batch=2, length=32, backend="eager", threads=1
    )

    ran = stream(tmp_path / "run", "--state", tmp_path / "s", "--chunk", "50", given=TEXT[:120])

    assert [record["position"] for record in records(ran.out)] == [50, 100, 120]
    assert "has no level that learns" in ran.err
    assert records(ran.out)[0]["updates"] == {}


def test_a_sequence_ends_with_the_text(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(ENDING, encoding="utf-8")
    train(tmp_path / "small.yaml", steps=2, out=tmp_path / "run", batch=2, length=32, backend="eager", eval_bytes=64, threads=1)
    (tmp_path / "text").write_bytes(TEXT[:40])

    ended = nlc("stream", tmp_path / "run", tmp_path / "text", "--state", tmp_path / "s.safetensors", "--end")
    state = load_file(tmp_path / "s.safetensors")
    (tmp_path / "more").write_bytes(TEXT[:8])
    more = nlc("stream", tmp_path / "run", tmp_path / "more", "--state", tmp_path / "s.safetensors")

    assert records(ended.out)[-1] == {"schema_version": 1, "ended_after": 40, "updates": {"F": 2}}
    assert next(x for key, x in state.items() if key.endswith("pending:tokens")).shape[1] == 0
    assert records(more.out)[-1]["position"] == 8


def test_a_level_that_carries_its_period_on_has_no_end(run: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(TEXT[:40])

    failed = nlc("stream", run, tmp_path / "text", "--end")

    assert failed.code == 4
    assert "NLC755" in failed.err
    assert "remainder" in failed.err
