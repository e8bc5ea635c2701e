"""Rules of weights against their peers of torch, on weights alone: `nlc.optimizer` and the same steps by others. Written to bench/results.

25 million parameters in 200 tensors, matrices [512, 488] and vectors of 512; gradients are given. Each figure is a median over rounds in
which each side takes its turn. Run: python -m bench.optimizers [SECTION ..] [--quick]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import nlc
from bench.algebra import Row, row
from bench.memories import RESULTS
from bench.sections import run
from bench.timing import Step, medians
from bench.transformer import slow_level, train_step

ROUNDS = 5


def weights(count: int, matrices_only: bool = False) -> list[nn.Parameter]:
    """`count` matrices, and as many vectors, with gradients."""
    torch.manual_seed(0)
    shapes = [(512, 488)] * count + ([] if matrices_only else [(512,)] * count)
    params = [nn.Parameter(0.05 * torch.randn(shape)) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def adamw(count: int, rounds: int) -> Iterator[Row]:
    """AdamW against the fused and the foreach implementation of torch."""
    peers = {"fused": 0.95, "foreach": 3.0}
    steps: dict[str, Step] = {"ours": nlc.optimizer("adamw", weights(count)).step}
    steps |= {kind: torch.optim.AdamW(weights(count), **{kind: True}).step for kind in peers}
    first, seconds = medians(steps, rounds)
    for kind, bar in peers.items():
        yield row(
            "adamw",
            f"torch.optim.AdamW({kind}=True)",
            f"{2 * count} tensors",
            seconds[kind] / seconds["ours"],
            ">=",
            bar,
            **shown(seconds, first),
        )


def muon(count: int, rounds: int) -> Iterator[Row]:
    """Muon in float32 against a plain loop over the tensors, and M3 with a period of 10 against Muon."""
    params = weights(count, matrices_only=True)
    buffers = [torch.zeros_like(p) for p in params]
    m3 = nlc.optimizer("m3", weights(count, matrices_only=True), period=10)

    def period() -> None:
        for _ in range(10):
            m3.step()

    steps: dict[str, Step] = {
        "ours": nlc.optimizer("muon", weights(count, matrices_only=True)).step,
        "loop": lambda: muon_by_hand(params, buffers),
    }
    first, seconds = medians(steps, rounds)
    yield row(
        "muon, float32",
        "a plain loop over tensors",
        f"{count} matrices",
        seconds["loop"] / seconds["ours"],
        ">=",
        0.95,
        **shown(seconds, first),
    )
    first, slow = medians({"m3, 10 steps": period, "muon": steps["ours"]}, max(1, rounds // 2))
    more = shown({"ours": slow["m3, 10 steps"] / 10, "muon": slow["muon"]}, first)
    yield row("m3, period 10", "our muon", f"{count} matrices", slow["m3, 10 steps"] / 10 / slow["muon"], "<=", 1.25, **more)


def muon_in_bfloat16(count: int, rounds: int) -> Iterator[Row]:
    """Muon with its steps rounded to bfloat16 against that of torch, which computes them in bfloat16."""
    theirs = torch.optim.Muon(weights(count, matrices_only=True), lr=0.02, momentum=0.95, nesterov=False, weight_decay=0)
    ours = nlc.optimizer("muon", weights(count, matrices_only=True), ns_dtype="bfloat16")
    first, seconds = medians({"ours": ours.step, "theirs": theirs.step}, rounds)
    ratio, more = seconds["theirs"] / seconds["ours"], shown(seconds, first)
    yield row("muon, bfloat16 Newton-Schulz", "torch.optim.Muon", f"{count} matrices", ratio, ">=", 1.0, **more)


@torch.no_grad()
def muon_by_hand(params: list[nn.Parameter], buffers: list[Tensor]) -> None:
    for p, m in zip(params, buffers, strict=True):
        assert p.grad is not None
        m.mul_(0.95).add_(p.grad)
        X = m / m.norm().clamp(min=1e-7)
        X = X.mT if X.shape[0] > X.shape[1] else X
        for _ in range(5):
            A = X @ X.mT
            X = torch.addmm(X, torch.addmm(A, A, A, beta=-4.775, alpha=2.0315), X, beta=3.4445)
        X = X.mT if p.shape[0] > p.shape[1] else X
        p.add_(X, alpha=-0.02 * max(1, p.shape[0] / p.shape[1]) ** 0.5)


def shown(seconds: dict[str, float], first: dict[str, float]) -> dict[str, Any]:
    return {
        "milliseconds": {name: round(1e3 * x, 2) for name, x in seconds.items()},
        "first_call_s": {k: round(x, 2) for k, x in first.items()},
    }


SECTIONS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "adamw": lambda quick: adamw(3 if quick else 100, 1 if quick else ROUNDS),
    "muon": lambda quick: muon(3 if quick else 100, 1 if quick else ROUNDS),
    "bfloat16": lambda quick: muon_in_bfloat16(3 if quick else 4, 1 if quick else ROUNDS),
    "train-step": lambda quick: train_step(*((1, 16, 1) if quick else (8, 256, ROUNDS))),
    "slow-level": lambda quick: slow_level(2 if quick else 1000),
}


if __name__ == "__main__":
    run(__doc__, RESULTS / "optimizers.json", SECTIONS, tensors={"matrices": [512, 488], "vectors": [512], "dtype": "float32"})
