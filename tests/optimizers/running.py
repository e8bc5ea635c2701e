"""Runs an optimiser on fixed weights and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

SHAPES = ((3,), (4, 5), (40, 30), (2, 3, 2), ())
Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def weights(shapes: Iterable[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]


def gradients(like: list[nn.Parameter], steps: int, seed: int = 1) -> list[list[Tensor]]:
    """One gradient for each weight at each step, of sizes between 0.1 and 10."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [
            10 ** (2 * float(torch.rand((), generator=generator)) - 1)
            * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
            for p in like
        ]
        for _ in range(steps)
    ]


def run(make: Make, steps: int = 50, shapes: Iterable[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """The weights after some steps."""
    params = weights(shapes, dtype)
    optimizer = make(params)
    for step in gradients(params, steps):
        for p, g in zip(params, step, strict=True):
            p.grad = g
        optimizer.step()
    return [p.detach() for p in params]


def difference(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest difference, relative to each tensor's max."""
    return max(((x - y).abs().max() / y.abs().max()).item() for x, y in zip(found, wanted, strict=True))
