"""Memories from YAML against what a user would pick instead, forward and backward, in one run.

Peers: the hand-written gated delta rule of `yardstick.py` and, where fla-core is installed, its naive chunk function.
Everything is interleaved round by round; ratios are of medians.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import nlc
from bench.yardstick import draw, gated_delta_rule, sgemm_gflops

RESULTS = Path(__file__).parent / "results"
SHAPE = {"B": 4, "H": 4, "K": 64, "V": 64, "dtype": "float32"}
Rule = Callable[..., Tensor]


def machine() -> dict[str, object]:
    """What figures depend on, without names of hosts or folders."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = fields.get("flags", "").split()
    return {
        "cpu": fields.get("model name", platform.machine()),
        "flags": [flag for flag in ("avx2", "avx512f", "amx_tile", "avx512_bf16") if flag in flags],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def compiled(path: str, names: list[str], **options: object) -> Rule:
    """A spec as a function of tensors in this order, returning its first output."""
    module = nlc.compile(path, backend="inductor", **options)  # type: ignore[arg-type]
    return lambda *x: next(iter(module(dict(zip(names, x, strict=True)))[0].values()))


def fla_naive() -> Rule | None:
    try:
        from fla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule
    except ImportError:
        return None
    return lambda q, k, v, beta, g: naive_chunk_gated_delta_rule(q, k, v, g, beta, scale=1.0)[0]


def seconds(rules: dict[str, tuple[Rule, list[Tensor]]], rounds: int, skip_after: float = 60.0) -> dict[str, dict[str, float]]:
    """Cold seconds of the first call and the median of the others, forward and backward, interleaved."""
    times: dict[str, list[float]] = {name: [] for name in rules}
    for round_ in range(rounds + 1):
        for name, (rule, inputs) in rules.items():
            if round_ > 3 and times[name][-1] > skip_after / rounds:
                continue
            start = time.perf_counter()
            o = rule(*inputs)
            torch.autograd.grad(o.sum(), inputs)
            times[name].append(time.perf_counter() - start)
    return {name: {"cold": round(t[0], 2), "median": statistics.median(t[1:])} for name, t in times.items()}


def run(tokens: int, rounds: int) -> dict[str, object]:
    inputs = draw(tokens)
    q, k, v, beta, g = inputs
    eta, alpha = (torch.rand_like(beta).mul(0.5).requires_grad_(), torch.exp(g.detach()).requires_grad_())
    momentum = [q, k, v, beta.detach().mul(0.3).requires_grad_(), eta, alpha]
    torch._dynamo.reset()
    rules: dict[str, tuple[Rule, list[Tensor]]] = {
        "hand-written": (torch.compile(lambda *x: gated_delta_rule(*x)[0], fullgraph=True, dynamic=False), inputs),
        "nlc gated_delta_rule": (compiled("specs/ops/gated_delta_rule.yaml", ["q", "k", "v", "beta", "g"]), inputs),
        "nlc momentum_delta": (compiled("specs/ops/momentum_delta.yaml", ["q", "k", "v", "theta", "eta", "alpha"]), momentum),
    }
    for chunk in (int(c) for c in sys.argv[2:]):
        rules[f"nlc gated_delta_rule {chunk}"] = (
            compiled("specs/ops/gated_delta_rule.yaml", ["q", "k", "v", "beta", "g"], chunk=chunk),
            inputs,
        )
        names = ["q", "k", "v", "theta", "eta", "alpha"]
        rules[f"nlc momentum_delta {chunk}"] = (compiled("specs/ops/momentum_delta.yaml", names, chunk=chunk), momentum)
    naive = fla_naive()
    if naive is not None and tokens <= 4096:
        rules["fla-core naive chunk"] = (naive, inputs)
    found = seconds(rules, rounds)
    ours = found["nlc gated_delta_rule"]["median"]
    ratios = {f"nlc gated_delta_rule / {name}": round(t["median"] / ours, 2) for name, t in found.items()}
    rates = {name: {"tokens_per_second": round(4 * tokens / t["median"]), "cold_seconds": t["cold"]} for name, t in found.items()}
    return {"ratio": ratios, "tokens": tokens, "rounds": rounds, **rates, "sgemm_gflops": round(sgemm_gflops())}


def main() -> None:
    torch.set_num_threads(2)
    lengths = [int(x) for x in sys.argv[1].split(",")] if len(sys.argv) > 1 else [1024, 4096, 16384]
    rows = []
    for tokens in lengths:
        rows.append(run(tokens, 11 if tokens <= 4096 else 5))
        print(json.dumps(rows[-1], indent=1), flush=True)
    if len(sys.argv) <= 2:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "memories.json").write_text(json.dumps({"machine": machine(), "shape": SHAPE, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
