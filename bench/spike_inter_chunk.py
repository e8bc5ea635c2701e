"""Four ways to run the recurrence over chunks inside one compiled layer; the choice is in docs/adr/0001-inter-chunk-recurrence.md.

The layer is the gated delta rule in chunk form; scores, solve and reads are the same code in all four, only the loop differs.
Cold compile: a fresh process for each form and length, caches off. Speed: all forms of one length in one process, interleaved.
Run: python spike_inter_chunk.py   (about a quarter of an hour; writes results/spike_inter_chunk.json)
"""

import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

HERE = Path(__file__).resolve().parent
LENGTHS, LIMIT_SECONDS, CHUNK = (1024, 4096, 16384), 150, 32


def load(path: Path):  # type: ignore[no-untyped-def]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # the compiler looks globals up by module name
    spec.loader.exec_module(module)
    return module


kernels, yardstick = load(HERE / "spike_kernels.py"), load(HERE / "yardstick.py")
Rule = Callable[..., tuple[Tensor, Tensor]]


def before(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    """Everything that is parallel over chunks, up to e_i = e0_i - y_i z_i."""
    batch, tokens, heads, _ = q.shape

    def chunks(x: Tensor) -> Tensor:
        shape = (batch, tokens // CHUNK, CHUNK, heads, x.shape[-1])
        return x.reshape(shape).permute(1, 0, 3, 2, 4).reshape(tokens // CHUNK, batch * heads, CHUNK, x.shape[-1])

    q, k, v, beta = chunks(q), chunks(k), chunks(v), chunks(beta.unsqueeze(-1))
    between, from_start, to_end, total = kernels.segment_decay(chunks(g.unsqueeze(-1)).squeeze(-1))
    column, start = k * beta, from_start.unsqueeze(-1)
    a = ((k @ column.mT) * between).tril(-1)
    e0, y = kernels.unit_lower_solve(a, v), kernels.unit_lower_solve(a, k * start)
    z0 = q.new_zeros(q.shape[1], q.shape[3], v.shape[3])
    return e0, y, column * to_end.unsqueeze(-1), total[..., None, None], z0, q * start, (q @ column.mT) * between


def after(errors: Tensor, states: Tensor, rows: Tensor, scores: Tensor, batch: int) -> Tensor:
    n, g, c, v = errors.shape
    o = rows @ states + scores @ errors
    return o.view(n, batch, g // batch, c, v).permute(1, 0, 3, 2, 4).reshape(batch, n * c, g // batch, v)


def by_operator(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    e0, y, x, decay, z0, rows, scores = before(*inputs)
    errors, states = kernels.inter_chunk(e0, y, x, decay, z0)
    return after(errors, states[:-1], rows, scores, inputs[0].shape[0]), states[-1]


def by_scan(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    e0, y, x, decay, z0, rows, scores = before(*inputs)

    def body(z: Tensor, step: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        e0_i, y_i, x_i, decay_i = step
        error = e0_i - y_i @ z
        return z * decay_i + x_i.mT @ error, (z.clone(), error.clone())

    final, (states, errors) = scan(body, z0, (e0, y, x, decay))
    return after(errors, states, rows, scores, inputs[0].shape[0]), final


def advance(e0: Tensor, y: Tensor, x: Tensor, decay: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    error = e0 - y @ z
    return error, z * decay + x.mT @ error


def loop(prepared: tuple[Tensor, ...], step: Rule) -> tuple[Tensor, Tensor, Tensor]:
    e0, y, x, decay, z = prepared[:5]
    errors, states = [], []
    for parts in zip(e0.unbind(), y.unbind(), x.unbind(), decay.unbind(), strict=True):
        states.append(z)
        error, z = step(*parts, z)
        errors.append(error)
    return torch.stack(errors), torch.stack(states), z


def unrolled(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    prepared = before(*inputs)
    errors, states, final = loop(prepared, advance)
    return after(errors, states, *prepared[5:], inputs[0].shape[0]), final


def by_compiled_body() -> Rule:
    first, step, last = (torch.compile(f, fullgraph=True, dynamic=False) for f in (before, advance, after))

    def rule(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        prepared = first(*inputs)
        errors, states, final = loop(prepared, step)
        return last(errors, states, *prepared[5:], inputs[0].shape[0]), final

    return rule


PLAIN: dict[str, Rule] = {"operator": by_operator, "scan": by_scan, "unrolled": unrolled}
NAMES = ("operator", "scan", "compiled body", "unrolled")


def compiled(name: str) -> Rule:
    return by_compiled_body() if name == "compiled body" else torch.compile(PLAIN[name], fullgraph=True, dynamic=False)


def train(rule: Rule, inputs: list[Tensor]) -> float:
    start = time.perf_counter()
    torch.autograd.grad(rule(*inputs)[0], inputs, torch.ones_like(inputs[2]))
    return time.perf_counter() - start


def infer(rule: Rule, inputs: list[Tensor]) -> float:
    start = time.perf_counter()
    with torch.no_grad():
        rule(*inputs)
    return time.perf_counter() - start


def cold(name: str, tokens: int) -> dict[str, object]:
    """First training step in a fresh process, and the difference of its output to the hand-written rule."""
    inputs = yardstick.draw(tokens)
    rule = compiled(name)
    seconds = train(rule, inputs)
    with torch.no_grad():
        difference = (yardstick.gated_delta_rule(*inputs)[0] - rule(*inputs)[0]).abs().max().item()
    return {"cold_train_seconds": round(seconds, 1), "difference": difference}


def export(name: str, tokens: int) -> dict[str, object]:
    class Layer(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
            return PLAIN[name](q, k, v, beta, g)

    start = time.perf_counter()
    program = torch.export.export(Layer(), tuple(x.detach() for x in yardstick.draw(tokens)))
    return {"export_nodes": len(program.graph.nodes), "export_seconds": round(time.perf_counter() - start, 1)}


def speed(names: list[str], tokens: int) -> dict[str, object]:
    """Median tokens per second of every form, forms interleaved within each round."""
    inputs = yardstick.draw(tokens)
    rules = {name: compiled(name) for name in names}
    rules["hand-written rule"] = torch.compile(yardstick.gated_delta_rule, fullgraph=True, dynamic=False)
    for rule in rules.values():
        train(rule, inputs), infer(rule, inputs)
    seconds: dict[str, list[list[float]]] = {name: [[], []] for name in rules}
    for _ in range({1024: 15, 4096: 9}.get(tokens, 5)):
        for name, rule in rules.items():
            seconds[name][0].append(infer(rule, inputs))
            seconds[name][1].append(train(rule, inputs))
    count = inputs[0].shape[0] * tokens
    rates = {name: {"forward": count / statistics.median(f), "train": count / statistics.median(t)} for name, (f, t) in seconds.items()}
    return {"sgemm_gflops": round(yardstick.sgemm_gflops()), **{name: {k: round(v) for k, v in r.items()} for name, r in rates.items()}}


def child(*arguments: str, limit: int = LIMIT_SECONDS, caches: bool = False) -> dict[str, object]:
    """One measurement in a process of its own."""
    environment = os.environ if caches else {**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    try:
        command = [sys.executable, "-W", "ignore", __file__, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"skipped": f"more than {limit} s"}
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if re.match(r"^[\w.]*(Error|Exception|Unsupported)", line)]
        return {"failed": re.sub(r"(/[\w.@-]+)+/", "", (last or done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1])[:200]}
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def machine() -> dict[str, object]:
    info = Path("/proc/cpuinfo").read_text()
    flags = set(re.findall(r"^flags\s*:(.*)", info, re.MULTILINE)[0].split())
    return {
        "cpu": re.findall(r"^model name\s*:\s*(.*)", info, re.MULTILINE)[0],
        "cpu_family_model": re.findall(r"^(?:cpu family|model)\s*:\s*(\d+)", info, re.MULTILINE)[:2],
        "flags": {flag: flag in flags for flag in ("avx2", "avx512f", "amx_tile", "amx_bf16")},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "shape": {"B": 4, "H": 4, "K": 64, "V": 64, "C": CHUNK, "dtype": "float32"},
    }


def main() -> None:
    target = HERE / "results" / "spike_inter_chunk.json"
    results: dict[str, object] = {"machine": machine(), "cold": {}, "export": {}, "speed": {}}

    def record(section: str, key: str, value: dict[str, object]) -> None:
        results[section][key] = value  # type: ignore[index]
        print(section, key, value, flush=True)
        target.write_text(json.dumps(results, indent=1) + "\n")

    usable: dict[int, list[str]] = {tokens: [] for tokens in LENGTHS}
    for name in NAMES:
        stopped = False
        for tokens in LENGTHS:
            if stopped:
                record("cold", f"{name} {tokens}", {"skipped": "a shorter sequence took too long or failed"})
                continue
            value = child("cold", name, str(tokens))
            record("cold", f"{name} {tokens}", value)
            stopped = "cold_train_seconds" not in value
            if not stopped:
                usable[tokens].append(name)
    for tokens in LENGTHS:
        record("speed", str(tokens), child("speed", str(tokens), *usable[tokens], limit=2 * LIMIT_SECONDS, caches=True))
    for name in PLAIN:
        for tokens in LENGTHS[:2]:
            record("export", f"{name} {tokens}", child("export", name, str(tokens), limit=60))


if __name__ == "__main__":
    torch.set_num_threads(2)
    match sys.argv[1:]:
        case ["cold", name, tokens]:
            print(json.dumps(cold(name, int(tokens))))
        case ["export", name, tokens]:
            print(json.dumps(export(name, int(tokens))))
        case ["speed", tokens, *names]:
            print(json.dumps(speed(names, int(tokens))))
        case _:
            main()
