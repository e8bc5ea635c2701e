"""Every op with a peer against that peer; decoding and memory; results in `results/algebra.json`, a page from them.

A row is one comparison: a figure and its bar. Speeds are forward and backward, of medians, ours over theirs, measured round by round in one
process. Outputs and gradients of both sides are compared on a small case first; what differs is left out.
Run: python -m bench.algebra [SECTION ..] [--quick]     (rows of other sections stay in the file if machine and versions are the same)
     python -m bench.algebra --page > docs/speed.md
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

import nlc
from bench.memories import RESULTS, machine, peak_bytes, step, warm_up
from bench.peers import LEFT_OUT, Rule, fla_peers, linear_attention_by_hand, ttt_linear_by_hand
from bench.yardstick import gated_delta_rule
from nlc.diagnostics import BackendError
from nlc.runtime.process import set_up

FILE = RESULTS / "algebra.json"
BLOCK = Path(__file__).parent / "specs" / "titans_block.yaml"
SMALL = {"H": 2, "K": 16, "V": 16}
FULL = {"H": 4, "K": 64, "V": 64}
OUTPUTS_AGREE, GRADIENTS_AGREE = 2e-5, 1e-4
"""Largest difference over the largest value."""
Row = dict[str, Any]


class Run:
    """Sizes, and what is collected."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.backend = "eager" if quick else "inductor"
        self.batch = 2 if quick else 4
        self.dims = SMALL if quick else FULL
        self.rounds = 1 if quick else 7
        self.left_out: dict[str, str] = {}

    def compile(self, spec: str | Path, dims: dict[str, int] | None = None) -> Any:
        return nlc.compile(spec, dims=self.dims | (dims or {}), backend=self.backend)


def as_rule(module: Any) -> Rule:
    """The first output of a module as a function of its inputs, in the order of the spec."""
    names = module.graph.inputs
    return lambda *x: next(iter(module(dict(zip(names, x, strict=True)))[0].values()))


def op(name: str, backend: str, dims: dict[str, int]) -> Any:
    module = nlc.compile(f"ops/{name}", dims=dims, backend=backend)
    if name == "retnet":
        with torch.no_grad():
            module.get_parameter("octave.W").copy_(-5.0 - torch.arange(dims["H"]))
    return module


def drawn(module: Any, batch: int, tokens: int) -> list[Tensor]:
    """Inputs of an op: keys and queries of length 1, gates near 1, rates below 1."""
    torch.manual_seed(0)
    values = []
    for name in module.graph.inputs:
        shape = (batch, tokens, *(axis.size for axis in module.graph.flows[name].axes))
        uniform = torch.rand(shape)
        if name in ("q", "k", "p", "kap"):
            x = normalize(torch.randn(shape), dim=-1)
        elif name in ("g", "w") and module.graph.name != "ttt_linear":
            x = -0.1 * uniform
        elif name in ("alpha", "w"):
            x = 1 - 0.1 * uniform
        elif name == "lam":
            x = (1 + uniform[:1, :1]).expand(shape).contiguous()
        elif module.graph.name == "momentum_delta" and name in ("theta", "eta"):
            x = 0.1 * uniform if name == "theta" else 1 - 0.1 * uniform  # their chunk form loses digits where momentum fades fast
        elif name in ("beta", "theta", "eta", "a"):
            x = 0.1 + 0.4 * uniform
        else:
            x = torch.randn(shape)
        values.append(x.requires_grad_())
    return values


def difference(ours: Rule, theirs: Rule, inputs: list[Tensor], shared: bool = False) -> tuple[float, float]:
    """Of outputs and of gradients, over the largest value of each; shared: the last input is one for all tokens on their side."""
    d_o = torch.randn_like(ours(*inputs))
    results = []
    for rule in (ours, theirs):
        o = rule(*inputs)
        results.append([o.detach(), *torch.autograd.grad(o, inputs, d_o)])
    if shared:
        for tensors in results:
            tensors[-1] = tensors[-1].sum((0, 1))
    both = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*results, strict=True)]
    return both[0], max(both[1:])


def timed(rules: dict[str, tuple[Rule, list[Tensor], Tensor]], rounds: dict[str, int]) -> dict[str, float]:
    """Median seconds of each, interleaved; what has one round has no other step before it."""
    for name, rule in rules.items():
        if rounds[name] > 1:
            step(*rule)
    times: dict[str, list[float]] = {name: [] for name in rules}
    for number in range(max(rounds.values())):
        for name, rule in rules.items():
            if number < rounds[name]:
                times[name].append(step(*rule))
    return {name: statistics.median(t) for name, t in times.items()}


def speed_row(what: str, peer: str, tokens: int, seconds: tuple[float, float], bar: float, batch: int, rounds: int, **more: Any) -> Row:
    ours, theirs = seconds
    rate = {"ours": round(batch * tokens / ours), "theirs": round(batch * tokens / theirs)}
    return row(what, peer, f"T = {tokens:,}", theirs / ours, ">=", bar, tokens_per_second=rate, rounds=rounds, **more)


def row(what: str, peer: str, case: str, figure: float, sense: str, bar: float, **more: Any) -> Row:
    met = figure >= bar if sense == ">=" else figure <= bar
    return {"what": what, "peer": peer, "case": case, "figure": round(figure, 3), "bar": f"{sense} {bar:g}", "met": met, **more}


def algebra(run: Run) -> Iterator[Row]:
    """Ops of matrix memories against naive functions of fla-core."""
    run.left_out |= LEFT_OUT
    peers = fla_peers()
    if not peers:
        run.left_out["all ops"] = "fla-core is not installed"
    for name, peer in peers.items():
        small = op(name, "eager", SMALL)
        rules, agree = {}, {}
        for kind, rule in (("chunk", peer.chunk), ("per token", peer.token)):
            if rule is None:
                run.left_out[f"{name}, {kind}"] = f"fla-core has no naive {kind} function of it"
                continue
            agree[kind] = difference(as_rule(small), rule, drawn(small, 2, 128), shared=name == "mesa")
            if agree[kind][0] > OUTPUTS_AGREE or agree[kind][1] > GRADIENTS_AGREE:
                run.left_out[f"{name}, {kind}"] = "differs on a small case: outputs by {:.1e}, gradients by {:.1e}".format(*agree[kind])
            else:
                rules[kind] = rule
        if not rules:
            continue
        module = op(name, run.backend, run.dims)
        for tokens in (128,) if run.quick or name == "mesa" else (1024, 4096):
            now = {kind: rule for kind, rule in rules.items() if kind == "chunk" or tokens <= 1024}
            if not now:
                continue
            inputs = drawn(module, run.batch, tokens)
            d_o = torch.randn_like(inputs[module.graph.inputs.index("v")])
            d_o = d_o[:, :, -1] if name == "gated_delta_product" else d_o
            tried = {"ours": (as_rule(module), inputs, d_o)} | {kind: (rule, inputs, d_o) for kind, rule in now.items()}
            rounds = {kind: {"chunk": 5, "per token": 1}.get(kind, 7) if not run.quick else 1 for kind in tried}
            seconds = timed(tried, rounds)
            for kind in now:
                pair = (seconds["ours"], seconds[kind])
                more = {"differences": [float(f"{x:.1e}") for x in agree[kind]], "note": peer.note}
                bar = 1.5 if kind == "chunk" else 12
                yield speed_row(name, f"fla-core naive {kind}", tokens, pair, bar, run.batch, rounds[kind], **more)
            if "chunk" in now and tokens == 1024 and (reason := too_much(seconds["chunk"], peak_bytes(*tried["chunk"]))):
                run.left_out[f"{name}, chunk, T = 4,096"] = reason
                break
        gc.collect()


def too_much(seconds: float, needed: int) -> str:
    """Why a function with this step is not tried at four times the length, if so."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    if seconds > 1.5:
        return f"one step of their function takes {seconds:.1f} s at T = 1,024"
    return f"their function needs about {4 * needed / 2**30:.0f} GiB" if 4 * needed > 0.8 * available else ""


def linear(run: Run) -> Iterator[Row]:
    """Linear attention against its chunk form written by hand and compiled."""
    module = op("linear_attention", run.backend, run.dims)
    for tokens in (128,) if run.quick else (1024, 4096):
        inputs = drawn(module, run.batch, tokens)
        d_o = torch.randn_like(inputs[2])
        forms = {}
        for chunk in (32, 64, 128):
            form = hand_form(chunk, compiled=not run.quick)
            step(form, inputs, d_o)
            forms[chunk] = (min(step(form, inputs, d_o) for _ in range(3)), form)
        chunk = min(forms, key=lambda c: forms[c][0])
        form = forms[chunk][1]
        differences = difference(as_rule(module), form, inputs)
        rounds = 3 * run.rounds
        seconds = timed({"ours": (as_rule(module), inputs, d_o), "hand": (form, inputs, d_o)}, {"ours": rounds, "hand": rounds})
        note = f"the best of chunks of 32, 64 and 128: {chunk}"
        yield speed_row(
            "linear_attention", "by hand, torch.compile", tokens, (seconds["ours"], seconds["hand"]), 0.9, run.batch, rounds,
            differences=[float(f"{x:.1e}") for x in differences], note=note,
        )  # fmt: skip


def hand_form(chunk: int, compiled: bool) -> Rule:
    def form(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return linear_attention_by_hand(q, k, v, chunk)

    return torch.compile(form, fullgraph=True, dynamic=False) if compiled else form


def ttt(run: Run) -> Iterator[Row]:
    """TTT-Linear against an eager loop over chunks of 16."""
    chunk, tokens = 16, 64 if run.quick else 1024
    dims = {name: size for name, size in run.dims.items() if name != "V"} | {"c": chunk}
    module = nlc.compile("ops/ttt_linear", dims=dims, backend=run.backend)
    inputs = drawn(module, run.batch, tokens)

    def hand(*x: Tensor) -> Tensor:
        return ttt_linear_by_hand(*x, chunk=chunk)

    differences = difference(as_rule(module), hand, inputs)
    if differences[0] > OUTPUTS_AGREE or differences[1] > GRADIENTS_AGREE:
        run.left_out["ttt_linear, by hand"] = "differs: outputs by {:.1e}, gradients by {:.1e}".format(*differences)
        return
    d_o = torch.randn_like(inputs[2])
    seconds = timed({"ours": (as_rule(module), inputs, d_o), "hand": (hand, inputs, d_o)}, {"ours": run.rounds, "hand": run.rounds})
    yield speed_row(
        "ttt_linear, c = 16", "by hand, eager loop over chunks", tokens, (seconds["ours"], seconds["hand"]), 2, run.batch, run.rounds,
        differences=[float(f"{x:.1e}") for x in differences],
        note="gradients by formula, dual form within a chunk",
    )  # fmt: skip


TITANS = {
    "both": "x [B, T, 256] -> y [B, T, 256]: RMS norm, linear q, k, v of 4 heads of 64, sigmoid gates of step, momentum and decay from x, "
    "a memory W2 gelu(W1 k) of hidden width 256 for each head with a learned start, gradients at the memory of the chunk start, momentum, "
    "decay, read, a sigmoid gate for each head, linear out; gradients of x and of all parameters",
    "ours": "ops/titans_mlp in bench/specs/titans_block.yaml: a momentum and a decay step for each token; a token reads the memory "
    "after its own write; squared error summed over channels, step 0.01 sigmoid; one RMS norm for reads and writes",
    "theirs": "NeuralMemory(256, heads=4, dim_head=64, chunk_size=c, model=MemoryMLP(64, depth=2, expansion_factor=4), "
    "mem_model_norm_add_residual=False) of titans-pytorch, eager: one gradient, one momentum and one decay step a chunk, with gates of "
    "the mean of the chunk; a chunk reads the memory after the chunk before; squared error averaged over channels, step sigmoid; one RMS "
    "norm for reads and one for writes; the layer norm and residual that it has by default around its perceptron are off, as ours has none",
    "compared": "times only: the two are different memories",
}
"""What each side of the section titans computes."""


def titans(run: Run) -> Iterator[Row]:
    """An MLP memory with momentum against titans-pytorch."""
    try:
        from titans_pytorch import MemoryMLP, NeuralMemory
    except ImportError:
        run.left_out["titans_mlp, titans-pytorch"] = "titans-pytorch is not installed"
        return
    heads, width = run.dims["H"], run.dims["K"]
    d, tokens = heads * width, 128 if run.quick else 1024
    for chunk, bar in ((16, 8.0), (64, 1.8)):
        ours = run.compile(BLOCK, {"d": d, "h": 4 * width, "c": chunk})
        torch.manual_seed(0)
        memory = MemoryMLP(width, depth=2, expansion_factor=4.0)
        theirs = NeuralMemory(d, heads=heads, dim_head=width, chunk_size=chunk, model=memory, mem_model_norm_add_residual=False)
        x = torch.randn(run.batch, tokens, d, requires_grad=True)
        d_y = torch.randn_like(x)

        def our_rule(x: Tensor, *_: Tensor, module: Any = ours) -> Tensor:
            return module({"x": x})[0]["y"]

        def their_rule(x: Tensor, *_: Tensor, module: Any = theirs) -> Tensor:
            return module(x)[0]

        learned = [p for name, p in theirs.named_parameters() if not name.startswith("memory_model.")]
        rules = {"ours": (our_rule, [x, *ours.parameters()], d_y), "theirs": (their_rule, [x, *learned], d_y)}
        for rule, inputs, _ in rules.values():
            assert bool(rule(*inputs).isfinite().all())
        seconds = timed(rules, dict.fromkeys(rules, run.rounds))
        pair = (seconds["ours"], seconds["theirs"])
        yield speed_row(
            f"titans_mlp, c = {chunk}", "titans-pytorch NeuralMemory", tokens, pair, bar, run.batch, run.rounds, computed=TITANS
        )


def decode(run: Run) -> Iterator[Row]:
    """One token of a stream against three products of a state with a vector for each head."""
    early, late, times = (3, 20, 5) if run.quick else (10, 1000, 51)
    for name in ("linear_attention", "gla", "gated_delta_rule", "kda"):
        module = op(name, run.backend, run.dims)
        for batch in (16, 1):
            inputs = {key: x[:, 0].detach() for key, x in zip(module.graph.inputs, drawn(module, batch, 1), strict=True)}
            vector = torch.randn(batch * run.dims["H"], 1, run.dims["K"])
            matrix = torch.randn(batch * run.dims["H"], run.dims["K"], run.dims["V"])
            steps, products = [], []
            with torch.no_grad():
                state = module.initial_state(batch)
                for _ in range(late + times):
                    start = time.perf_counter()
                    _, state = module.step(inputs, state)
                    middle = time.perf_counter()
                    for _ in range(3):
                        torch.bmm(vector, matrix)
                    steps.append(middle - start)
                    products.append(time.perf_counter() - middle)
            at = {t: statistics.median(steps[t : t + times]) for t in (early, late)}
            three = statistics.median(products[late:])
            micro = {"microseconds": {"step": round(1e6 * at[late]), "three products": round(1e6 * three)}}
            sense = ("<=", 3) if batch == 16 else ("<=", float("inf"))
            yield row(f"{name}, one token", "time of three [K, V] products a head", f"B = {batch}", at[late] / three, *sense, **micro)
            yield row(f"{name}, one token", "itself", f"B = {batch}, token {late:,} over token {early}", at[late] / at[early], "<=", 1.1)


def memory(run: Run) -> Iterator[Row]:
    """Peak bytes of a step beyond its inputs, against the gated delta rule written by hand."""
    lengths = (128, 256) if run.quick else (4096, 8192)
    by_hand = lambda *x: gated_delta_rule(*x)[0]  # noqa: E731
    hand = by_hand if run.quick else torch.compile(by_hand, fullgraph=True, dynamic=False)
    of_hand = op("gated_delta_rule", "eager", run.dims)
    names = ("gated_delta_rule", "gla", "kda")
    modules = {name: op(name, run.backend, run.dims) for name in names}
    bytes_per_token: dict[str, dict[int, float]] = {name: {} for name in ("hand", *names)}
    for tokens in lengths:
        for name in bytes_per_token:
            rule, module = (hand, of_hand) if name == "hand" else (as_rule(modules[name]), modules[name])
            inputs = drawn(module, run.batch, tokens)
            d_o = torch.randn_like(inputs[2])
            for _ in range(2):
                step(rule, inputs, d_o)
            peak = statistics.median(peak_bytes(rule, inputs, d_o) for _ in range(3))
            bytes_per_token[name][tokens] = max(peak, 1) / (run.batch * tokens)
    short, long = lengths
    for name in names:
        for tokens in lengths:
            ours, theirs = bytes_per_token[name][tokens], bytes_per_token["hand"][tokens]
            figures = {"bytes_per_token": {"ours": round(ours), "theirs": round(theirs)}}
            yield row(f"{name}, peak memory", "gated delta rule by hand", f"T = {tokens:,}", ours / theirs, "<=", 1.2, **figures)
        growth = bytes_per_token[name][long] / bytes_per_token[name][short]
        yield row(f"{name}, peak memory a token", "itself", f"T = {long:,} over T = {short:,}", growth, "<=", 1.1)


SECTIONS: dict[str, Callable[[Run], Iterator[Row]]] = {
    "algebra": algebra,
    "linear": linear,
    "ttt": ttt,
    "decode": decode,
    "memory": memory,
    "titans": titans,
}


def about() -> Row:
    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {"machine": machine(), "versions": {name: version(name) for name in ("torch", "fla-core", "titans-pytorch")}}


def write(path: Path, report: Row) -> None:
    """Beside, then renamed: no reader sees half a file."""
    path.parent.mkdir(exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def line(row: Row) -> str:
    figures = next((row[key] for key in ("tokens_per_second", "microseconds", "bytes_per_token") if key in row), {})
    unit = {"tokens_per_second": "tokens/s", "microseconds": "µs", "bytes_per_token": "bytes a token"}
    units = next((unit[key] for key in unit if key in row), "")
    values = " / ".join(f"{x:,}" for x in figures.values())
    bar = "none" if row["bar"] == "<= inf" else row["bar"].replace("<=", "at most").replace(">=", "at least")
    missed = "**below the bar**" if bar.startswith("at least") else "**above the bar**"
    verdict = "" if bar == "none" else "met" if row["met"] else missed
    return f"| {row['what']} | {row['peer']} | {row['case']} | {row['figure']:.2f} | {bar} | {verdict} | {values} {units} |"


HEAD = "| what | against | case | ratio | bar | | ours / theirs |\n|---|---|---|---|---|---|---|"


READING = """Where the bar is a least value, the ratio is of speed, ours over theirs; where it is a largest one, of time or memory, ours
over theirs. Both sides ran in one process, in turn, and the ratio is of medians; a function that goes token by token ran once. Both give
the same outputs and gradients, if not said otherwise. Figures of different rows are not of the same minute: compare ratios.
"""

PROCESS = """The process keeps freed memory and flushes subnormal numbers (`nlc/runtime/process.py`, as `nlc train` does), for both sides.
In a program of your own, `torch.set_flush_denormal(True)` before the first tensor does the second: decays multiply into numbers below
1e-38, on which the matrix products of some processors take ten times as long.
"""


def page(report: Row) -> str:
    """The page docs/speed.md."""
    info, versions = report["machine"], report["versions"]
    used = ", ".join(f"{name} {number}" for name, number in versions.items() if number)
    shape = ", ".join(f"{name} = {size}" for name, size in report["shape"].items() if name != "dtype")
    parts = [
        "<!-- written by python -m bench.algebra --page -->\n# Speed\n",
        f"Measured on {info['cpu']} ({', '.join(info['flags'])}), {info['threads']} threads, Python {info['python']}, {used}.",
        f"{shape} unless said, {report['shape']['dtype']}, forward and backward.\n\n{READING}",
        PROCESS if all(report["process"].values()) else f"Of the process: {report['process']}\n",
    ]
    missed = sum(not row["met"] for rows in report["sections"].values() for row in rows)
    total = sum(row["bar"] != "<= inf" for rows in report["sections"].values() for row in rows)
    parts.append(f"{total - missed} of {total} comparisons meet their bar; the others are marked.\n")
    for name, section in SECTIONS.items():
        if rows := report["sections"].get(name):
            parts += [f"## {str(section.__doc__).split(chr(10))[0].removesuffix('.')}\n", HEAD, *map(line, rows), ""]
            notes = {f"- {row['what'].split(',')[0]}: {row['note']}." for row in rows if row.get("note")}
            notes |= {f"- {side}: {text}." for row in rows for side, text in row.get("computed", {}).items()}
            parts += [*sorted(notes), ""] if notes else []
    left = [f"- {what}: {why}." for rows in report["left_out"].values() for what, why in rows.items()]
    parts += ["## Left out\n", *left] if left else []
    return "\n".join(parts).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing compiled, no file: a test of this script")
    parser.add_argument("--page", action="store_true", help="print the page of the results")
    parser.add_argument("--out", type=Path, help="the file of the results")
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; sections: {', '.join(SECTIONS)}")
    path = arguments.out or FILE
    if arguments.page:
        sys.stdout.write(page(json.loads(path.read_text(encoding="utf-8"))))
        return
    torch.set_num_threads(1 if arguments.quick else 2)
    caches = tempfile.TemporaryDirectory()  # nothing of an earlier run
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = caches.name
    run = Run(arguments.quick)
    report = about() | {"shape": {"B": run.batch, **run.dims, "dtype": "float32"}}
    report["process"] = set_up()
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    same = all(old.get(key) == value for key, value in report.items())
    report |= {"sections": old["sections"] if same else {}, "left_out": old["left_out"] if same else {}}
    if not run.quick:
        warm_up()
    begin = time.perf_counter()
    failed: list[str] = []
    keep = bool(arguments.out) or not run.quick
    print(HEAD)
    for name in arguments.sections or SECTIONS:
        torch._dynamo.reset()
        gc.collect()
        run.left_out, rows = {}, []
        report["sections"][name], report["left_out"][name] = rows, run.left_out
        try:
            for found in SECTIONS[name](run):
                rows.append(found)
                print(line(found), flush=True)
                if keep:
                    write(path, report)
        except (RuntimeError, BackendError) as error:  # the other sections are worth having
            run.left_out[f"the rest of section {name}"] = f"failed: {' '.join(str(error).split())[:200]}"
            failed.append(name)
            traceback.print_exc()
        if keep:
            write(path, report)
        print(f"[{name} done after {time.perf_counter() - begin:.0f} s]", file=sys.stderr, flush=True)
    for what, why in ((what, why) for rows in report["left_out"].values() for what, why in rows.items()):
        print(f"left out: {what}: {why}")
    caches.cleanup()
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
