"""Levels that learn while tokens come, in training. Written to bench/results/continuum.json.

Float32, B = 4, T = 1024. The peers are compiled by nlc too: the same model whose levels never change, and a transformer with as many
parameters. Run: python -m bench.continuum [SECTION ..] [--quick]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

import nlc
from bench.algebra import Row, row
from bench.memories import RESULTS
from bench.sections import run
from bench.timing import medians
from nlc.language import loads
from nlc.runtime.compiled import CompiledSpec

SPECS = Path(__file__).parent / "specs"
SIZE = {"d": 256, "H": 4, "K": 64, "V": 64, "h": 512, "layers": 4}
SMALL = {"d": 16, "H": 2, "K": 8, "V": 8, "h": 16, "layers": 2}
PERIODS = ((64, 512, 4096), (16, 256, 4096))


def plain(dims: Mapping[str, int], backend: str) -> CompiledSpec:
    """`models/hope_attention` whose levels never change."""
    return nlc.compile(SPECS / "plain_chain_lm.yaml", dims=dims, backend=backend)


def levels(dims: Mapping[str, int], periods: tuple[int, int, int], backend: str, **options: Any) -> CompiledSpec:
    given = {**dims, "fast": periods[0], "middle": periods[1], "slow": periods[2]}
    return nlc.compile("models/hope_attention", dims=given, backend=backend, **options)


def numbers(compiled: CompiledSpec) -> int:
    return sum(p.numel() for p in compiled.parameters())


def steps_of(models: Mapping[str, CompiledSpec], shape: tuple[int, int], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of the first and of the median train step of each, in turn."""
    tokens = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    state: dict[str, Any] = dict.fromkeys(models)

    def stepping(name: str) -> None:
        _, state[name] = models[name].train_step({"tokens": tokens}, state[name])

    return medians({name: partial(stepping, name) for name in models}, rounds)


def continuum(quick: bool) -> Iterator[Row]:
    """Three levels in each of four layers against the same chain of MLPs that never change."""
    dims, shape, rounds, backend = (SMALL, (2, 64), 1, "eager") if quick else (SIZE, (4, 1024), 5, "inductor")
    names = {f"{'/'.join(map(str, each))}": each for each in PERIODS}
    models = {"plain": plain(dims, backend), **{name: levels(dims, each, backend) for name, each in names.items()}}
    first, seconds = steps_of(models, shape, rounds)
    for name in names:
        more = {"seconds": {each: round(seconds[each], 3) for each in ("plain", name)}, "first_step_s": round(first[name], 1)}
        more |= {"parameters": {each: numbers(models[each]) for each in ("plain", name)}}
        case = f"{dims['layers']} layers of attention and three MLPs, d={dims['d']} h={dims['h']} B={shape[0]} T={shape[1]}, periods {name}"
        what, ratio = f"train step, levels every {name} tokens: times the time", seconds[name] / seconds["plain"]
        sense, bar = ("<=", 1.6) if name == "64/512/4096" else (">=", 0)  # reported beside it
        yield row(what, "the same MLPs without levels", case, ratio, sense, bar, **more)


def outer(quick: bool) -> Iterator[Row]:
    """What the outer gradient of levels costs: cut at the shortest period, whole, and through their updates."""
    shape, rounds, backend = ((2, 64), 1, "eager") if quick else ((4, 1024), 5, "inductor")
    dims = {"d": 16, "H": 2, "K": 8, "V": 8, "h": 16, "fast": 8, "middle": 16, "slow": 32} if quick else {}
    cut = (SPECS / "outer_gradients.yaml").read_text()
    through = cut.replace("backprop: first_order", "backprop: unrolled")
    whole = "        backprop: {truncated: fast tokens}\n"
    texts = {
        "cut": cut,
        "whole": cut.replace(whole, ""),
        "through updates, cut every 512": through.replace("fast tokens}\n", "slow tokens}\n"),
    }
    texts["through updates"] = through.replace(whole, "")
    models = {name: nlc.compile(loads(text), dims=dims, backend=backend) for name, text in texts.items()}
    first, seconds = steps_of(models, shape, rounds)
    case = f"one layer of attention and three MLPs, d={dims.get('d', 256)} B={shape[0]} T={shape[1]}, levels every 64/256/512 tokens"
    for name in [name for name in texts if name != "cut"]:
        more = {"seconds": {each: round(seconds[each], 3) for each in ("cut", name)}, "first_step_s": round(first[name], 1)}
        yield row(
            f"train step, outer gradient {name}: times the time",
            "cut every 64 tokens",
            case,
            seconds[name] / seconds["cut"],
            ">=",
            0,
            **more,
        )


def hope(quick: bool) -> Iterator[Row]:
    """Hope of 9.3 million parameters against a transformer with as many."""
    backend, shape, rounds = ("eager", (2, 64), 1) if quick else ("inductor", (4, 1024), 3)
    small = {"d": 16, "m": 16, "h": 32, "layers": 2}
    ours = nlc.compile("models/hope", dims=small if quick else {"d": 256, "m": 256, "h": 1024, "layers": 4}, backend=backend)
    peer = nlc.compile(SPECS / "transformer_10m.yaml", dims={"layers": 2} if quick else {}, backend=backend)
    first, seconds = steps_of({"hope": ours, "transformer": peer}, shape, rounds)
    more = {"seconds": {name: round(each, 3) for name, each in seconds.items()}, "first_step_s": round(first["hope"], 1)}
    more |= {"parameters": {"hope": numbers(ours), "transformer": numbers(peer)}}
    case = f"d={16 if quick else 256} B={shape[0]} T={shape[1]}, memories every 16 and 64 tokens, levels every 64/512/4096"
    yield row(
        "Hope, train step", "a transformer with as many parameters", case, seconds["transformer"] / seconds["hope"], ">=", 0.15, **more
    )


def hope_without(dims: Mapping[str, int], backend: str, *without: str) -> CompiledSpec:
    """Hope without some passes."""
    return nlc.compile("models/hope", dims=dims, backend=backend, without=without)


def passes(quick: bool) -> Iterator[Row]:
    """What `fuse-learners` and `bucket-frequencies` bring to Hope: train steps, and single tokens of one session."""
    shape, rounds, backend = ((2, 64), 1, "eager") if quick else ((4, 1024), 5, "inductor")
    for d in (16,) if quick else (64, 128):
        dims = {"d": d, "m": d, "h": 2 * d, "layers": 3}
        names = ("fuse-learners", "bucket-frequencies") if d != 128 else ("fuse-learners",)
        models = {"with": hope_without(dims, backend), **{name: hope_without(dims, backend, name) for name in names}}
        first, seconds = steps_of(models, shape, rounds)
        for name in names:
            more = {"seconds": {"with": round(seconds["with"], 3), "without": round(seconds[name], 3)}}
            more |= {"first_step_s": {"with": round(first["with"], 1), "without": round(first[name], 1)}}
            more |= {"lines_of_source": {"with": models["with"].source.count("\n"), "without": models[name].source.count("\n")}}
            case = (
                f"{dims['layers']} layers, d={d} h={2 * d} B={shape[0]} T={shape[1]}, memories every 16/64, levels every 64/512/4096 tokens"
            )
            yield row(f"Hope, train step with {name}", "without it", case, seconds[name] / seconds["with"], ">=", 0, **more)
        yield from single_tokens(dims, rounds)


def single_tokens(dims: Mapping[str, int], rounds: int) -> Iterator[Row]:
    """One session, token by token, as generated."""
    pair = {"with": hope_without(dims, "eager"), "without": hope_without(dims, "eager", "fuse-learners")}
    states = {name: each.initial_state(1) for name, each in pair.items()}
    token = torch.zeros(1, 1, dtype=torch.int64)

    def stepping(name: str) -> None:
        with torch.no_grad():
            for _ in range(8):
                _, states[name] = pair[name]({"tokens": token}, states[name])

    _, seconds = medians({name: partial(stepping, name) for name in pair}, 4 * rounds)
    more = {"tokens_per_second": {name: round(8 / each, 1) for name, each in seconds.items()}}
    case = f"{dims['layers']} layers, d={dims['d']} B=1, eager"
    yield row("Hope, a token of one session with fuse-learners", "without it", case, seconds["without"] / seconds["with"], ">=", 0, **more)


if __name__ == "__main__":
    run(__doc__, RESULTS / "continuum.json", {"continuum": continuum, "outer": outer, "hope": hope, "passes": passes}, dtype="float32")
