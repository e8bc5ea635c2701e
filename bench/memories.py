"""Memories from YAML against what a user would pick instead, forward and backward, in one run.

Peers: the hand-written gated delta rule of `yardstick.py` and, where fla-core is installed, its naive chunk function.
Everything is interleaved round by round; ratios are of medians, ours over theirs in speed. Cold seconds are of the first step of each,
after the compiler has compiled something else once, with empty caches. Freed memory is kept
and subnormal numbers are flushed, for all of them.
Run: python -m bench.memories [T,T,..]
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import nlc
from bench.yardstick import draw, gated_delta_rule, sgemm_gflops
from nlc.runtime.process import set_up

RESULTS = Path(__file__).parent / "results"
BEST_KNOWN = 97_500 / 190
"""Tokens a second for each GFLOP/s of a float32 matrix product: the fastest hand-written form found before (T = 1024, same shape)."""
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


def compiled(path: str, names: list[str]) -> Rule:
    """A spec as a function of tensors in this order, returning its first output."""
    module = nlc.compile(path, backend="inductor")
    return lambda *x: next(iter(module(dict(zip(names, x, strict=True)))[0].values()))


def fla_naive() -> Rule | None:
    try:
        from fla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule
    except ImportError:
        return None
    return lambda q, k, v, beta, g: naive_chunk_gated_delta_rule(q, k, v, g, beta, scale=1.0)[0]


def step(rule: Rule, inputs: list[Tensor], d_o: Tensor) -> float:
    """Seconds of one step, forward and backward."""
    start = time.perf_counter()
    torch.autograd.grad(rule(*inputs), inputs, d_o)
    return time.perf_counter() - start


def peak_bytes(rule: Rule, inputs: list[Tensor], d_o: Tensor) -> int:
    """What a warm step needs beyond its inputs: the high-water mark of the process over what it held before."""
    libc = ctypes.CDLL(None)
    gc.collect()
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the mark
    before = status("VmRSS")
    step(rule, inputs, d_o)
    return status("VmHWM") - before


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def run(tokens: int, rounds: int) -> dict[str, object]:
    inputs = draw(tokens)
    q, k, v, beta, g = inputs
    d_o = torch.randn_like(v)
    eta, alpha = (torch.rand_like(beta).mul(0.5).requires_grad_(), torch.exp(g.detach()).requires_grad_())
    momentum = [q, k, v, beta.detach().mul(0.3).requires_grad_(), eta, alpha]
    rules: dict[str, tuple[Rule, list[Tensor]]] = {
        "hand-written": (torch.compile(lambda *x: gated_delta_rule(*x)[0], fullgraph=True, dynamic=False), inputs),
        "nlc gated_delta_rule": (compiled("specs/ops/gated_delta_rule.yaml", ["q", "k", "v", "beta", "g"]), inputs),
        "nlc momentum_delta": (compiled("specs/ops/momentum_delta.yaml", ["q", "k", "v", "theta", "eta", "alpha"]), momentum),
    }
    naive = fla_naive()
    if naive is not None and tokens <= 4096:
        rules["fla-core naive chunk"] = (naive, inputs)
    cold = {name: step(*rule, d_o) for name, rule in rules.items()}
    alone = statistics.median(step(*rules["hand-written"], d_o) for _ in range(rounds))
    times: dict[str, list[float]] = {name: [] for name in rules}
    products = [sgemm_gflops()]
    for _ in range(rounds):
        products.append(sgemm_gflops(times=1))
        for name, rule in rules.items():
            if len(times[name]) < 5 or name != "fla-core naive chunk":
                times[name].append(step(*rule, d_o))
    median = {name: statistics.median(t) for name, t in times.items()}
    ours = median["nlc gated_delta_rule"]
    return {
        "tokens": tokens,
        "gated_delta_rule": {f"times as fast as {name}": round(t / ours, 2) for name, t in median.items() if not name.startswith("nlc")},
        "momentum_delta": {"time over gated_delta_rule": round(median["nlc momentum_delta"] / ours, 2)},
        "tokens_per_second": {name: round(4 * tokens / t) for name, t in median.items()},
        "hand-written, before the others run": {
            "tokens_per_second": round(4 * tokens / alone),
            "of the best known figure": round(4 * tokens / alone / (BEST_KNOWN * products[0]), 2),
        },
        "cold_seconds": {name: round(t, 1) for name, t in cold.items()},
        "peak_bytes_per_token": {name: round(peak_bytes(*rule, d_o) / (4 * tokens)) for name, rule in rules.items()},
        "sgemm_gflops": round(statistics.median(products)),
        "rounds": rounds,
    }


def warm_up() -> None:
    """The compiler's own start is nobody's cold time."""
    x = torch.randn(64, 64, requires_grad=True)
    torch.compile(lambda x: (x @ x).tanh().sum())(x).backward()


def main() -> None:
    lengths = [int(x) for x in sys.argv[1].split(",")] if len(sys.argv) > 1 else [1024, 4096, 16384]
    torch.set_num_threads(2)
    process = set_up()
    rows = []
    with tempfile.TemporaryDirectory() as caches:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = caches
        warm_up()
        for tokens in lengths:
            torch._dynamo.reset()
            rows.append(run(tokens, 21 if tokens <= 4096 else 11))
            print(json.dumps(rows[-1], indent=1), flush=True)
    about = {**machine(), "process": process}
    if len(sys.argv) == 1:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "memories.json").write_text(json.dumps({"machine": about, "shape": SHAPE, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
