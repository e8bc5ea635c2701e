"""Functions of the library in rules: schedules by the number of the update, clipping; and where they may not stand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import nlc
from nlc.reference.interpreter import Reference
from tests.optimizers.running import difference, run

RULE = "nlc: 1\nname: mine\nparams: {{lr: 0.1}}\ninputs: {{g: gradient}}\noutputs: {{step: '{step}'}}\n"
SCHEDULES: dict[str, Callable[[int], float]] = {
    "warmup(age(self), 7)": lambda t: min(1, t / 7),
    "cosine(age(self), 20, floor=0.1)": lambda t: 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1, t / 20))),
    "wsd(age(self), 5, 10, 8)": lambda t: min(1, t / 5) * (1 - min(1, max(0, t - 15) / 8)),
    "inverse_sqrt(age(self), steps=9)": lambda t: min(t / 9, math.sqrt(9 / t)),
    "warmup(age(self), 4) * cosine(age(self), 25)": lambda t: min(1, t / 4) * 0.5 * (1 + math.cos(math.pi * min(1, t / 25))),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_rate_by_schedule(schedule: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(RULE.format(step=f"-lr * {schedule} * g"))

    def theirs(p: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(p, 0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: SCHEDULES[schedule](t + 1))
        optimizer.register_step_post_hook(lambda *_: scheduler.step())
        return optimizer

    assert difference(run(lambda p: nlc.optimizer(file, p, backend="eager"), steps=30), run(theirs, steps=30)) < 1e-12


@pytest.mark.parametrize("norm", [True, False])
def test_clipping(norm: bool, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(RULE.format(step=f"-lr * {'clip_norm' if norm else 'clip_value'}(g, 0.7)"))

    def theirs(p: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(p, 0.1)
        clip = torch.nn.utils.clip_grad_norm_ if norm else torch.nn.utils.clip_grad_value_
        optimizer.register_step_pre_hook(lambda *_: (clip(p, 0.7), None)[1])
        return optimizer

    assert difference(run(lambda p: nlc.optimizer(file, p, backend="eager"), steps=9), run(theirs, steps=9)) < 1e-12


MODEL = """\
nlc: 1
name: scheduled
dims: {vocab: 7, d: 4}
inputs: {tokens: {index: vocab}}
flows: {logits: "unembed(embed(tokens, vocab, d), vocab)"}
loss: cross_entropy(logits, next(tokens))
levels:
  training:
    every: 1 step
    learners:
      weights: {owns: rest, scope: shared, read: start, learn: {minimize: loss, fold: {row: mean, token: mean}, rule: RULE}}
outputs: {logits: logits}
"""


def test_a_schedule_in_a_model(tmp_path: Path) -> None:
    file = tmp_path / "scheduled.yaml"
    file.write_text(MODEL.replace("RULE", '{adam: {lr: "0.1 * warmup(age(self), 3) * cosine(age(self), 10)"}}'))
    compiled = nlc.compile(file, backend="eager").double()
    known = {name: p.detach().clone() for name, p in compiled.named_parameters()}
    tokens, state, wanted = {"tokens": torch.tensor([[1, 2, 3, 4, 5, 6]])}, None, dict[str, torch.Tensor]()

    for _ in range(6):
        _, state = compiled.train_step(tokens, state)
        _, known, wanted = Reference(compiled.stages[0].graph, known).train_step(tokens, wanted)
        assert difference([p.detach() for p in compiled.parameters()], list(known.values())) < 1e-12


@pytest.mark.parametrize(
    ("rule", "place", "message"),
    [
        ("{adam: {b1: 1.5}}", "scheduled.yaml:11:131", "`adam` requires `b1 >= 0 and b1 < 1`; `b1` is 1.5"),
        ("{adam: {lr: -0.1}}", "scheduled.yaml:11:131", "`adam` requires `lr >= 0`; `lr` is -0.1"),
        ('{sgd: {lr: "cosine(age(self), 0)"}}', "scheduled.yaml:11", "`cosine` requires `steps > 0`; `steps` is 0"),
        ('{sgd: {lr: "cosine(age(self), step=9)"}}', "scheduled.yaml:11", "`cosine` has no argument `step`"),
        ('{sgd: {lr: "cosin(age(self), 9)"}}', "scheduled.yaml:11", "did you mean `cosine`?"),
        ("{sgd: {lr: bfloat16}}", "scheduled.yaml:11", "`bfloat16` is a precision, no number"),
    ],
)
def test_values_that_a_rule_does_not_allow(rule: str, place: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "scheduled.yaml"
    file.write_text(MODEL.replace("RULE", rule))

    with pytest.raises(nlc.SpecError) as caught:
        nlc.compile(file, backend="eager")

    assert message in str(caught.value)
    assert place in str(caught.value)
