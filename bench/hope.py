"""Self-modifying memories against the public implementation. Written to bench/results/hope.json.

d = 256, hidden width 256, periods of 16 tokens (memory) and 64 (projections), B = 4, T = 1024, float32. The peer is the module
`SelfModifyingTitans` of nested-learning 0.2.0 (pip install --no-deps nested-learning==0.2.0), which has no gradients through its updates.
Run: python -m bench.hope [SECTION ..] [--quick]
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nlc
from bench.algebra import Row, row
from bench.memories import RESULTS
from bench.sections import run
from bench.timing import medians, once
from nlc.runtime.compiled import CompiledSpec

SPEC = Path(__file__).parent / "specs" / "self_modifying.yaml"
BOXES = {"Mk": "m_k", "Mv": "m_v", "Mq": "m_q", "Meta": "m_eta", "Malpha": "m_alpha", "M": "m_memory"}
TENSORS = {"W1": "w1", "W2": "w2", "W0": "w_skip"}
AGREE = 1e-12
"""In float64; both sides compute the same numbers."""


def peer_module() -> Any:
    """The file of the peer alone; its package asks for more than it needs here."""
    found = importlib.util.find_spec("nested_learning")
    assert found is not None and found.submodule_search_locations, "pip install --no-deps nested-learning==0.2.0"
    path = Path(found.submodule_search_locations[0]) / "titan" / "self_modifying.py"
    spec = importlib.util.spec_from_file_location("nested_learning_self_modifying", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def both(d: int, periods: tuple[int, int], backend: str) -> tuple[CompiledSpec, Any]:
    """The peer with its defaults and an adaptive query, and ours with its weights."""
    peer = peer_module()
    torch.manual_seed(0)
    config = peer.SelfModifyingTitansConfig(dim=d, chunk_size_memory=periods[0], chunk_size_other=periods[1], adaptive_q=True)
    theirs = peer.SelfModifyingTitans(config)
    ours = nlc.compile(SPEC, dims={"d": d, "h": d, "c": periods[0], "p": periods[1]}, backend=backend)
    p = dict(ours.named_parameters())
    with torch.no_grad():
        for mine, name in BOXES.items():
            for tensor, other in TENSORS.items():
                weight = getattr(getattr(theirs, name), other, None)
                if weight is not None:
                    p[f"{mine}.{tensor}.init"].copy_(weight.weight)
        p["u.conv.W"].copy_(theirs.local_conv.weight[:, 0].T)
    return ours, theirs


def answers(theirs: Any, x: Tensor) -> Tensor:
    y: Tensor = theirs.forward_with_updates(x, theirs.init_fast_state())[0]
    return y


def difference() -> float:
    """The largest difference of the two in float64, at a small size."""
    ours, theirs = both(32, (4, 8), "eager")
    x = torch.randn(2, 30, 32, dtype=torch.float64)
    with torch.no_grad():
        y, wanted = ours.double()({"x": x})[0]["y"], answers(theirs.double(), x)
    found = float((y - wanted).abs().max() / wanted.abs().max())
    assert found < AGREE, found
    return found


def forward(quick: bool) -> Iterator[Row]:
    """Forward with updates, in tokens per second; the peer over fewer tokens, its time is linear in them."""
    d, batch, tokens, rounds = (32, 2, 64, 1) if quick else (256, 4, 1024, 5)
    few = tokens // 4
    ours, theirs = both(d, (16, 64), "eager" if quick else "inductor")
    x = torch.randn(batch, tokens, d)
    with torch.no_grad():
        steps = {"ours": lambda: ours({"x": x}), "theirs": lambda: answers(theirs, x[:, :few])}
        first, seconds = medians(steps, rounds)
    speed = {"ours": batch * tokens / seconds["ours"], "theirs": batch * few / seconds["theirs"]}
    more = {"tokens_per_second": {name: round(each) for name, each in speed.items()}, "first_call_s": round(first["ours"], 1)}
    more |= {"difference_float64": float(f"{difference():.1e}"), "tokens_of_the_peer": few}
    case = f"d={d} B={batch} T={tokens}, periods 16 and 64"
    yield row(
        "self-modifying Titans, forward with updates", "nested-learning 0.2.0", case, speed["ours"] / speed["theirs"], ">=", 40, **more
    )


def backward(quick: bool) -> Iterator[Row]:
    """Forward and backward through the updates against our own forward."""
    d, batch, tokens, rounds = (32, 2, 64, 1) if quick else (256, 4, 1024, 5)
    ours = nlc.compile(SPEC, dims={"d": d, "h": d}, backend="eager" if quick else "inductor")
    x = torch.randn(batch, tokens, d)

    def there() -> None:
        with torch.no_grad():
            ours({"x": x})

    def and_back() -> None:
        torch.autograd.grad(ours({"x": x})[0]["y"].square().mean(), list(ours.parameters()))

    once(and_back)
    _, seconds = medians({"forward": there, "both": and_back}, rounds)
    more = {"seconds": {name: round(each, 3) for name, each in seconds.items()}}
    case = f"d={d} B={batch} T={tokens}, periods 16 and 64"
    yield row("self-modifying Titans, forward and backward", "its own forward", case, seconds["both"] / seconds["forward"], "<=", 4, **more)


if __name__ == "__main__":
    run(__doc__, RESULTS / "hope.json", {"forward": forward, "backward": backward}, dtype="float32")
