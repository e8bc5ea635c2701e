"""Every rule of the library trains a small convex and a small non-convex problem to a stated loss, in 300 steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nlc
from tests.optimizers.test_rules import rules

LINEAR, NETWORK = 5e-3, 2e-2
"""The losses to come below: least squares of a matrix, from 9.4, and a net of two matrices and a tanh, from 0.85."""
RATES: dict[str, tuple[float, float]] = {
    "adagrad": (1.0, 0.3), "adam": (0.3, 0.1), "adamw": (1.0, 0.03), "adamw_clipped": (0.1, 0.1), "ademamix": (1.0, 0.03),
    "deep_momentum": (0.3, 0.3), "delta_momentum": (1.0, 0.3), "feature_momentum": (0.3, 0.3), "gd": (1.0, 1.0),
    "hypergradient": (0.1, 0.1), "lion": (0.03, 0.003), "lookahead": (1.0, 0.1), "m3": (0.03, 0.01), "momentum": (0.3, 0.3),
    "muon": (0.03, 0.01), "nadam": (0.03, 0.01), "nesterov": (1.0, 0.3), "preconditioned_momentum": (0.03, 0.01),
    "rmsprop": (0.03, 0.01), "sgd": (1.0, 1.0), "shampoo": (1.0, 0.3), "soap": (0.1, 0.03),
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {"m3": {"eps": 1.0, "keep": 0.9}, "hypergradient": {"hyper": 0.01}}
"""As printed, with sums that forget nothing, the steps of m3 shrink before it is there."""


GENERATOR = torch.Generator().manual_seed(0)
A, TRUE, X, W, U, V = (
    torch.randn(s, generator=GENERATOR, dtype=torch.float64) for s in ((6, 32), (4, 6), (64, 3), (4, 6), (16, 3), (2, 16))
)


def linear(W: Tensor) -> Tensor:
    return (W @ A - TRUE @ A).square().mean()


def network(U: Tensor, V: Tensor) -> Tensor:
    y = torch.stack([torch.tanh(X[:, 0] - X[:, 1]), torch.sin(X[:, 2])], 1)
    return (torch.tanh(X @ U.T) @ V.T - y).square().mean()


@pytest.mark.parametrize("rule", list(rules()))
def test_rule_trains(rule: str) -> None:
    for problem, first, rate, bound in (
        (linear, [0.5 * W], RATES[rule][0], LINEAR),
        (network, [0.5 * U, 0.3 * V], RATES[rule][1], NETWORK),
    ):
        params = [nn.Parameter(x.clone()) for x in first]
        optimizer = nlc.optimizer(rule, params, backend="eager", lr=rate, **MORE.get(rule, {}))
        for _ in range(300):
            optimizer.zero_grad()
            loss: Tensor = problem(*params)
            loss.backward()
            optimizer.step()

        assert problem(*params).item() < bound
