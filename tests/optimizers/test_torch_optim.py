"""Rules of the library against the optimisers of torch: the same weights after 50 steps, for random shapes and hyper-parameters."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import nlc
from tests.optimizers.running import difference, run

Values = dict[str, Any]
Peer = Callable[[list[torch.nn.Parameter], Values], torch.optim.Optimizer]
optim = torch.optim

RANGES = {
    "lr": (0.001, 0.1), "rate": (0.001, 0.1), "b": (0.8, 0.999), "b1": (0.5, 0.95), "b2": (0.8, 0.999), "eps": (1e-10, 1e-3),
    "decay": (0.0, 0.1), "lr_decay": (0.0, 0.5), "initial": (0.0, 1.0), "psi": (0.001, 0.1),
}  # fmt: skip
PEERS: dict[str, Peer] = {
    "sgd": lambda p, v: optim.SGD(p, v["lr"], weight_decay=v["decay"]),
    "momentum": lambda p, v: optim.SGD(p, v["rate"], momentum=v["decay"]),
    "nesterov": lambda p, v: optim.SGD(p, v["rate"], momentum=v["decay"], nesterov=True),
    "adagrad": lambda p, v: optim.Adagrad(p, v["lr"], v["lr_decay"], v["decay"], v["initial"], v["eps"]),
    "rmsprop": lambda p, v: optim.RMSprop(p, v["lr"], v["b"], v["eps"], v["decay"]),
    "adam": lambda p, v: optim.Adam(p, v["lr"], (v["b1"], v["b2"]), v["eps"], v["decay"]),
    "adamw": lambda p, v: optim.AdamW(p, v["lr"], (v["b1"], v["b2"]), v["eps"], v["decay"]),
    "nadam": lambda p, v: optim.NAdam(p, v["lr"], (v["b1"], v["b2"]), v["eps"], v["decay"], v["psi"]),
}


@pytest.fixture(autouse=True)
def exact_scalars() -> Iterator[None]:
    """NAdam of torch keeps the product of its momenta in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def drawn(rule: str, seed: int) -> tuple[Values, tuple[tuple[int, ...], ...]]:
    generator = random.Random(f"{rule} {seed}")
    values = {param.name: generator.uniform(*RANGES[param.name]) for param in nlc.load(f"optimizers/{rule}").params}
    if rule == "nesterov" or rule == "momentum":
        values["decay"] = generator.uniform(0.1, 0.95)
    shapes = tuple(tuple(generator.randint(1, 9) for _ in range(generator.randint(0, 4))) for _ in range(6))
    return values, (*shapes, (150, 150))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", PEERS)
def test_same_as_torch(rule: str, seed: int) -> None:
    values, shapes = drawn(rule, seed)

    ours = run(lambda p: nlc.optimizer(rule, p, backend="eager", **values), shapes=shapes)
    theirs = run(lambda p: PEERS[rule](p, values), shapes=shapes)

    assert difference(ours, theirs) < 1e-12


@pytest.mark.parametrize("rule", PEERS)
def test_same_as_torch_in_float32(rule: str) -> None:
    values, shapes = drawn(rule, 3)
    values |= {"eps": 1e-6} if "eps" in values else {}

    ours = run(lambda p: nlc.optimizer(rule, p, backend="eager", **values), shapes=shapes, dtype=torch.float32)
    theirs = run(lambda p: PEERS[rule](p, values), shapes=shapes, dtype=torch.float32)

    assert difference(ours, theirs) < 1e-6


def test_muon_with_its_steps_in_bfloat16() -> None:
    shapes = ((4, 5), (30, 20), (20, 30), (64, 64), (1, 6))

    ours = run(lambda p: nlc.optimizer("muon", p, backend="eager", ns_dtype="bfloat16"), shapes=shapes, dtype=torch.float32)
    exact = run(lambda p: nlc.optimizer("muon", p, backend="eager"), shapes=shapes, dtype=torch.float32)
    theirs = run(lambda p: optim.Muon(p, lr=0.02, momentum=0.95, nesterov=False, weight_decay=0), shapes=shapes, dtype=torch.float32)

    assert difference(ours, theirs) < 2e-2
    assert difference(ours, exact) > 1e-4


@pytest.mark.inductor
@pytest.mark.parametrize("rule", ["momentum", "adamw"])
def test_compiled_is_the_same(rule: str) -> None:
    values, shapes = drawn(rule, 0)
    shapes = (*shapes, (), (1,))

    ours = run(lambda p: nlc.optimizer(rule, p, **values), shapes=shapes)
    theirs = run(lambda p: PEERS[rule](p, values), shapes=shapes)

    assert difference(ours, theirs) < 1e-12


@pytest.mark.inductor
def test_weights_that_lie_otherwise_in_memory() -> None:
    """In channels_last, and with gaps; their gradients alike, and otherwise."""

    def weights() -> list[torch.nn.Parameter]:
        generator = torch.Generator().manual_seed(0)
        image, wide = torch.randn(4, 3, 5, 5, generator=generator), torch.randn(6, 8, generator=generator)
        return [torch.nn.Parameter(x) for x in (image.to(memory_format=torch.channels_last), wide[:, ::2], wide.clone().T)]

    found = []
    for optimizer_of in (lambda p: nlc.optimizer("adamw", p, lr=0.1), lambda p: optim.AdamW(p, 0.1)):
        params = weights()
        optimizer = optimizer_of(params)
        for seed in range(3):
            for p in params:
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)).to(p.dtype)
                p.grad = p.grad.to(memory_format=torch.channels_last) if p.dim() == 4 and seed else p.grad
            optimizer.step()
        found.append([p.detach() for p in params])

    assert difference(*found) < 1e-12


def test_clipping_is_that_of_torch() -> None:
    class Clipped(optim.AdamW):
        def step(self, closure=None):  # type: ignore[no-untyped-def]
            torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 2.0)
            return super().step(closure)

    ours = run(lambda p: nlc.optimizer("adamw_clipped", p, lr=0.01, warmup=1e-9, clip=2.0, backend="eager"))
    theirs = run(lambda p: Clipped(p, 0.01, (0.9, 0.99), weight_decay=0.01))

    assert difference(ours, theirs) < 1e-12
