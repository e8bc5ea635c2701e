"""A run that begins with the weights and states of another one whose rule is another: what goes on, what is given up, what has no place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import nlc
from nlc.runtime import checkpoint
from nlc.runtime.training import TrainResult, train
from tests.cli.running import nlc as cli
from tests.optimizers.test_over_weights import MATRICES, MODEL, REST, weights

ADAMW = weights()
SPLIT = (
    f"{weights(MATRICES, '{m3: {period: 2, eps: 1.0e-2}}')}\nothers: {{use: outer, owns: rest, learn: {{rule: {{adamw: {{lr: 1.0e-2}}}}}}}}"
)


def run(folder: Path, name: str, learners: str, **options: object) -> TrainResult:
    spec, text = folder / f"{name}.yaml", folder / "text"
    spec.write_text(MODEL.replace("LEARNERS", "\n".join(f"      {line}" for line in learners.splitlines())))
    text.write_bytes(bytes(range(10)) * 300)
    return train(spec, text, steps=3, out=folder / name, batch=2, length=16, backend="eager", **options)  # type: ignore[arg-type]


def test_the_same_rule_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """`begin` without a change of the rule: the states are those of the run before, the batches those of a new run."""
    run(tmp_path, "first", ADAMW)
    run(tmp_path, "second", ADAMW, begin=tmp_path / "first")

    before, after = checkpoint.load(tmp_path / "first"), checkpoint.load(tmp_path / "second")
    assert int(before.optimizer["step"]) == 3
    assert int(after.optimizer["step"]) == 6


def test_moments_go_on_as_those_of_two_owners(tmp_path: Path) -> None:
    run(tmp_path, "first", ADAMW)
    names = {"weights.m": ["weights.m1", "others.m"], "weights.s": ["weights.s", "others.s"]}
    text = tmp_path / "text"
    spec = tmp_path / "second.yaml"
    spec.write_text(MODEL.replace("LEARNERS", "\n".join(f"      {line}" for line in SPLIT.splitlines())))

    begun = train(spec, text, steps=1, out=tmp_path / "second", batch=2, length=16, backend="eager", begin=tmp_path / "first", names=names)

    before, after = checkpoint.load(tmp_path / "first").optimizer, checkpoint.load(tmp_path / "second").optimizer
    assert begun.step == 1
    assert int(after["step"]) == 4
    # one more step of a sum and of an average, from where the first run was
    table = "x.embed.W"
    assert not torch.equal(after[f"others.m.{table}"], torch.zeros_like(after[f"others.m.{table}"]))
    moved = (after["weights.m1.y.linear.W"] - before["weights.m.y.linear.W"]).abs().max()
    assert 0 < moved < before["weights.m.y.linear.W"].abs().max()


@pytest.mark.parametrize(
    ("learners", "names", "message"),
    [
        (weights(REST, "{sgd: {}}"), {}, "would go on as `weights.m`, of which there is none"),
        (weights(REST, "{lion: {}}"), {}, "the saved state of `weights.s`"),
        (SPLIT, {"weights.s": None}, "of `x.embed.W`, would go on as `weights.m`, of which there is none"),
        (weights(REST, "{adam: {}}"), {"weights.s": None}, "`weights.s` would begin anew; its age"),
    ],
)
def test_what_would_be_lost(learners: str, names: dict[str, str | None], message: str, tmp_path: Path) -> None:
    run(tmp_path, "first", ADAMW)

    with pytest.raises(nlc.DataError) as caught:
        run(tmp_path, "second", learners, begin=tmp_path / "first", names=names)

    assert message in str(caught.value)
    assert not (tmp_path / "second").exists()


def test_on_the_command_line(tmp_path: Path) -> None:
    run(tmp_path, "first", ADAMW)
    spec = tmp_path / "lion.yaml"
    spec.write_text(MODEL.replace("LEARNERS", f"      {weights(REST, '{lion: {}}')}"))
    sizes = ("--text", tmp_path / "text", "--steps", 1, "--batch", 2, "--length", 16, "--backend", "eager")
    command: tuple[str | Path, ...] = ("train", spec, "-o", tmp_path / "second", *map(str, sizes), "--from", tmp_path / "first")

    refused = cli(*command)
    wrong = cli(*command, "--state", "weights.s")
    done = cli(*command, "--state", "weights.s=")

    assert (refused.code, wrong.code, done.code) == (4, 2, 0), done.err
    assert "NLC732" in refused.err
    assert "is no `OLD=NEW`" in wrong.err
    assert int(checkpoint.load(tmp_path / "second").optimizer["step"]) == 4
