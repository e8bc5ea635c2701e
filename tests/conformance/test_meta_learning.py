"""Models that meta-learn on sinusoids, against loops written by hand with second derivatives; float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nlc
from nlc.language import loads
from nlc.runtime.compiled import CompiledSpec
from tests.conformance.comparing import assert_equal

N, STEPS, QUERIES, TASKS = 5, 3, 6, 3
INNER = 0.05
Weights = dict[str, Tensor]
COMPILES = [pytest.mark.inductor, pytest.mark.slow]
BACKENDS = ["reference", "eager", pytest.param("inductor", marks=COMPILES)]


def text_of(model: str) -> str:
    return (Path(nlc.specs.__path__[0]) / f"models/{model}.yaml").read_text(encoding="utf-8")


def made(text: str, backend: str, **params: Any) -> CompiledSpec:
    sizes: dict[str, int] = {"h": 4, "H": 5} if "Hyper" in text else {"h": 4, "N": N}
    compiled = nlc.compile(loads(text), dims=sizes, params=params, backend=backend).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in compiled.parameters():
            p.copy_(0.7 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return compiled


def sinusoids(tasks: int, support: int, queries: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x, y [tasks, support + queries, 1] and the amplitude and phase of each task."""
    generator = torch.Generator().manual_seed(seed)
    task = torch.rand(tasks, 2, generator=generator, dtype=torch.float64) * torch.tensor([4.9, math.pi]) + torch.tensor([0.1, 0.0])
    x = torch.rand(tasks, support + queries, 1, generator=generator, dtype=torch.float64) * 10 - 5
    return x, task[:, None, :1] * torch.sin(x - task[:, None, 1:]), task


def rows(steps: int, queries: int, tasks: int = TASKS, seed: int = 0, n: int = N) -> dict[str, Tensor]:
    """The support set of each task, once for each step, then queries."""
    x, y, _ = sinusoids(tasks, n, queries, seed)
    order = [*list(range(n)) * steps, *range(n, n + queries)]
    support = torch.tensor([1.0] * (n * steps) + [0.0] * queries, dtype=torch.float64).expand(tasks, -1)
    return {"x": x[:, order], "y": y[:, order], "support": support.contiguous()}


def network(w: Weights, x: Tensor) -> Tensor:
    for i in range(1, len(w) // 2):
        x = F.gelu(x @ w[f"W{i}"] + w[f"b{i}"])
    return x @ w[f"W{len(w) // 2}"] + w[f"b{len(w) // 2}"]


def adapted(w: Weights, x: Tensor, y: Tensor, cross: Callable[[Tensor], Tensor]) -> Weights:
    """The weights after all steps on a support set x, y [N, ..]; `cross`: what the outer gradient sees of an inner one."""
    for _ in range(STEPS):
        loss = (network(w, x) - y).square().sum() / len(x)
        gradients = torch.autograd.grad(loss, list(w.values()), create_graph=True)
        w = {name: p - INNER * cross(g) for (name, p), g in zip(w.items(), gradients, strict=True)}
    return w


ORDERS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "second": ("", lambda g: g),
    "first": ("        backprop: first_order\n", lambda g: g.detach()),
}


def ordered(line: str) -> str:
    """The model with one more line in its learner."""
    text = text_of("maml_regression")
    place = "        learn: {key"
    assert text.count(place) == 1
    return text.replace(place, line + place)


@pytest.mark.parametrize(
    ("order", "backend"), [*itertools.product(ORDERS, BACKENDS[:2]), pytest.param("second", "inductor", marks=COMPILES)]
)
def test_the_outer_gradient_of_maml_is_that_of_the_loop_by_hand(order: str, backend: str) -> None:
    line, cross = ORDERS[order]
    compiled, given = made(ordered(line), backend, inner=INNER), rows(STEPS, QUERIES)
    p = dict(compiled.named_parameters())

    loss, outputs, _ = compiled.loss(given)
    found = torch.autograd.grad(loss, list(p.values()))

    first: Weights = {name.split(".")[1]: value for name, value in p.items()}
    losses: list[Tensor] = []
    answers: list[Tensor] = []
    for x, y in zip(given["x"], given["y"], strict=True):
        w = adapted(first, x[:N], y[:N], cross)
        answers.append(network(w, x[N * STEPS :]))
        losses.append((answers[-1] - y[N * STEPS :]).square().sum())
    total = torch.stack(losses).mean()
    wanted = torch.autograd.grad(total, list(p.values()))
    ours = {"loss": loss, "queries": outputs["y"][:, N * STEPS :], **dict(zip(p, found, strict=True))}
    assert_equal(ours, {"loss": total, "queries": torch.stack(answers), **dict(zip(p, wanted, strict=True))}, 1e-10)


def test_the_two_orders_differ() -> None:
    given, found = rows(STEPS, QUERIES), []
    for line, _ in ORDERS.values():
        compiled = made(ordered(line), "eager", inner=INNER)
        found.append(torch.autograd.grad(compiled.loss(given)[0], list(compiled.parameters()))[0])

    assert (found[0] - found[1]).abs().max() > 1e-3 * found[0].abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_reptile_goes_a_part_of_the_way_to_what_tasks_make_of_the_weights(backend: str) -> None:
    compiled, part = made(text_of("reptile_regression"), backend, inner=INNER, part=0.3), 0.3
    given = rows(STEPS, 1)
    given["done"] = 1 - given.pop("support")
    before = {name: p.detach().clone() for name, p in compiled.named_parameters()}
    weights = {name.removeprefix("P."): p.clone().requires_grad_() for name, p in before.items()}
    ends = [adapted(weights, x[:N], y[:N], lambda g: g.detach()) for x, y in zip(given["x"], given["y"], strict=True)]

    compiled.train_step(given)

    wanted = {f"P.{n}": p - part * (p - torch.stack([w[n] for w in ends]).mean(0)) for n, p in weights.items()}
    assert_equal(dict(compiled.named_parameters()), wanted, 1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hypernetwork_makes_the_weights_of_a_row_at_its_first_token(backend: str) -> None:
    compiled = made(text_of("hypernetwork_regression"), backend)
    x, y, task = sinusoids(TASKS, 0, 7)
    noise = torch.randn(TASKS, 6, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    given = {"x": x, "y": y, "task": torch.cat([task[:, None], noise], 1)}  # only the first token of a row counts
    p = dict(compiled.named_parameters())

    loss, outputs, _ = compiled.loss(given)
    found = torch.autograd.grad(loss, list(p.values()))

    code = F.gelu(task @ p["Hyper.W1"]) @ p["Hyper.W2"]
    w1, b1, w2 = code[:, None, :4], code[:, None, 4:8], code[:, 8:, None]
    answers = F.gelu(x * w1 + b1) @ w2
    total = (answers - y).square().sum(-1).mean()
    wanted = torch.autograd.grad(total, list(p.values()))
    ours = {"loss": loss, "y": outputs["y"], **dict(zip(p, found, strict=True))}
    assert_equal(ours, {"loss": total, "y": answers, **dict(zip(p, wanted, strict=True))}, 1e-10)


def test_maml_trains() -> None:
    """After some outer steps a few inner steps on a new task help more than before."""
    compiled = nlc.compile("models/maml_regression", dims={"h": 16}, params={"inner": 0.05, "lr": 3e-3}, backend="eager")

    def batch(seed: int) -> dict[str, Tensor]:
        return {name: x.float() for name, x in rows(2, 10, 8, seed, 10).items()}

    def score() -> float:
        with torch.no_grad():
            return float(sum(compiled.loss(batch(seed))[0] for seed in (1, 2, 3)))

    before, optimizer = score(), None
    for step in range(40):
        _, optimizer = compiled.train_step(batch(100 + step), optimizer)

    assert score() < 0.8 * before
