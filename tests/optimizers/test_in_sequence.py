"""Rules of the library inside the sequence: a memory moved by a rule is what `nlc.optimizer` makes of the gradients of its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import nlc
from nlc.language import loads
from nlc.language.library import Library
from nlc.runtime.compiled import CompiledSpec

K, V, T, PERIOD = 4, 3, 20, 8
SPEC = """\
nlc: 1
name: moved
dims: {{K: 4, V: 3}}
inputs: {{k: [K], v: [V], q: [K]}}
{uses}
levels:
  memory:
    every: {every} {tokens}
    learners:
      S: {{store: {{matrix: [K, V]}}, init: learned, {learn}}}
outputs: {{o: S(q)}}
"""
TWO = """\
nlc: 1
name: two
params: {lr: 0.1, period: 3, kept: 0.8}
inputs: {g: gradient}
levels:
  fast: {every: 1 update, learners: {m: {store: {like: g}, learn: {value: g, rate: 0.5}}}}
  slow:
    every: period updates
    learners:
      long: {store: {like: g}, learn: {value: g, minimize: dot, keep: kept, fold: FOLD}}
      longer: {store: {like: g}, read: start, learn: {value: long() + m(), rate: 0.3, fold: last}}
outputs: {step: -lr * (m() + 0.5 * long() + longer())}
"""
RULES = {  # with the rate that the rule has outside the sequence, where it has another name
    "gd": "rate: 0.1",
    "momentum": "rate: 0.1, decay: 0.8",
    "nesterov": "rate: 0.1, decay: 0.8",
    "adagrad": "lr: 0.1",
    "rmsprop": "lr: 0.1",
    "adam": "lr: 0.1",
    "nadam": "lr: 0.1",
    "muon": "rate: 0.1",
    "m3": "lr: 0.1, period: 3, eps: 1.0e-2",
    "ademamix": "lr: 0.1",
}


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(1, T, n, generator=generator, dtype=torch.float64) for name, n in (("k", K), ("v", V), ("q", K))}


def by_the_optimizer(compiled: CompiledSpec, rule: str, every: int, values: dict[str, Any]) -> Tensor:
    """The answers [T, V] of a memory whose matrix [V, K] an optimiser moves, a token at a time, by gradients at the start of a period."""
    x = {name: value[0] for name, value in inputs().items()}
    W = torch.nn.Parameter(dict(compiled.named_parameters())["S.init"].detach().T.clone())
    optimizer = nlc.optimizer(rule, [W], backend="eager", **values)
    found = []
    for t in range(T):
        if t % every == 0:
            anchor = W.detach().clone()
        W.grad = torch.outer(anchor @ x["k"][t] - x["v"][t], x["k"][t])
        optimizer.step()
        found.append(W.detach() @ x["q"][t])
    return torch.stack(found)


def made(text: str, folder: Path, form: str) -> CompiledSpec:
    library = Library(search=(folder,))
    return nlc.compile(loads(text, "moved", library), backend=form, library=library).double()


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_of_the_library(rule: str, tmp_path: Path) -> None:
    learn = f"learn: {{key: k, value: v, fold: each, rule: {{{rule}: {{{RULES[rule]}}}}}}}"
    compiled = made(SPEC.format(uses="", every=PERIOD, tokens="tokens", learn=learn), tmp_path, "eager")

    with torch.no_grad():
        found = compiled(inputs())[0]["o"][0]

    assert (found - by_the_optimizer(compiled, rule, PERIOD, yaml.safe_load(f"{{{RULES[rule]}}}"))).abs().max() < 1e-10


@pytest.mark.parametrize("form", ["reference", "eager"])
@pytest.mark.parametrize("fold", ["sum", "mean", "last"])
@pytest.mark.parametrize("every", [1, PERIOD])
def test_slow_learners_of_a_rule(fold: str, every: int, form: str, tmp_path: Path) -> None:
    """Linear ones compile at the running state too; calls may end inside a period."""
    (tmp_path / "two.yaml").write_text(TWO.replace("FOLD", fold))
    learn = f"learn: {{key: k, value: v, rule: {{two: {{}}}}{', fold: each' if every > 1 else ''}}}"
    text = SPEC.format(uses="uses: {two: two}", every=every, tokens="token" if every == 1 else "tokens", learn=learn)
    compiled = made(text, tmp_path, form)
    wanted = by_the_optimizer(compiled, str(tmp_path / "two.yaml"), every, {})

    with torch.no_grad():
        found = compiled(inputs())[0]["o"][0]
        first, state = compiled({name: x[:, :10] for name, x in inputs().items()})
        second, _ = compiled({name: x[:, 10:] for name, x in inputs().items()}, state)

    assert (found - wanted).abs().max() < 1e-12
    assert (torch.cat([first["o"], second["o"]], 1)[0] - wanted).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("fold: sum", ""), "other than one update a token"),
        (("fold: each", "reset: {every: 32 tokens}, "), "whose period a `reset` does not restart"),
    ],
)
def test_where_slow_learners_do_not_fit(more: tuple[str, str], message: str, tmp_path: Path) -> None:
    fold, reset = more
    learn = f"{reset}learn: {{key: k, value: v, {fold}, rule: {{m3: {{}}}}}}"

    with pytest.raises(nlc.SpecError) as caught:
        made(SPEC.format(uses="", every=PERIOD, tokens="tokens", learn=learn), tmp_path, "eager")

    assert message in str(caught.value)
