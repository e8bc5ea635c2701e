"""Periods that are folded into one update, against loops written by hand: values, states, gradients, streams that end inside a period."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import nlc
from nlc.diagnostics import BackendError
from nlc.graph.state import state_tensors
from nlc.language.load import loads
from nlc.runtime.compiled import CompiledSpec

Tensors = dict[str, Tensor]

B, T, H, K, V = 2, 14, 2, 3, 4
CHUNKS = (2, 4, 8, 16)
FORMS: list[tuple[str, dict[str, Any]]] = [("reference", {}), ("eager", {"form": "recurrent"})]
FORMS += [("eager", {"form": "chunkwise", "chunk": chunk}) for chunk in CHUNKS]
SPEC = """nlc: 1
name: folded
dims: {{H: 2, K: 3, V: 4}}
inputs: {{q: [H, K], k: [H, K], v: [H, V], p: [H, K], u: [H, V], beta: [H], g: [H], eta: [H], theta: [H], c: [H, K]}}
levels:
  memory:
    every: {period} tokens
    learners:
      S: {{store: {{matrix: [K, V]}}, per: [H], init: 0.2, read: {read}, learn: {learn}}}
outputs: {{o: S(q)}}
"""
RATES = {"absent": "", "number": ", rate: 0.3", "data": ", rate: sigmoid(beta)", "channels": ", rate: sigmoid(c)"}
KEEPS = {"absent": "", "number": ", keep: 0.9", "power": ", keep: 2^-0.5", "data": ", keep: sigmoid(g)", "log": ", keep: exp(-g^2)"}
KEEPS |= {"channels": ", keep: sigmoid(c)", "zeros": ", keep: relu(g)"}
RULE = ", rule: {momentum: {rate: sigmoid(eta), decay: tanh(theta)}}"


def numbers() -> Tensors:
    generator = torch.Generator().manual_seed(0)
    sizes = {"q": (H, K), "k": (H, K), "v": (H, V), "p": (H, K), "u": (H, V), "c": (H, K)} | dict.fromkeys(
        ("beta", "g", "eta", "theta"), (H,)
    )
    drawn = {name: 0.7 * torch.randn(B, T, *size, generator=generator, dtype=torch.float64) for name, size in sizes.items()}
    return {name: x.requires_grad_() for name, x in drawn.items()}


def text(fold: str, period: int, rate: str, keep: str, rule: bool, read: str, more: str = "") -> str:
    first = f"{{key: k, value: v, minimize: l2{fold}{RULE if rule else RATES[rate]}{KEEPS[keep]}}}"
    return SPEC.format(period=period, read=read, learn=f"[{first}, {more}]" if more else first)


def gate(name: str, table: dict[str, Callable[[], Tensor | float]]) -> Tensor:
    """A rate or keep of one token, for a state [B, H, K, V]."""
    value = torch.as_tensor(table[name](), dtype=torch.float64)
    return value[..., None, None] if value.dim() == 2 else value[..., None] if value.dim() == 3 else value


def rate_of(name: str, x: Tensors) -> Tensor:
    return gate(
        name,
        {"absent": lambda: 1.0, "number": lambda: 0.3, "data": lambda: x["beta"].sigmoid(), "channels": lambda: x["c"].sigmoid()},
    )


def keep_of(name: str, x: Tensors) -> Tensor:
    found: dict[str, Callable[[], Tensor | float]] = {
        "absent": lambda: 1.0,
        "number": lambda: 0.9,
        "power": lambda: 0.5**0.5,
        "data": lambda: x["g"].sigmoid(),
        "log": lambda: (-(x["g"] ** 2)).exp(),
        "channels": lambda: x["c"].sigmoid(),
        "zeros": lambda: x["g"].relu(),
    }
    return gate(name, found)


def loop(given: Tensors, fold: str, period: int, rate: str, keep: str, rule: bool, read: str, two: bool = False) -> tuple[Tensor, Tensor]:
    """One period after the other: its gradients at the state it began with, one step at its end."""
    S = torch.full((B, H, K, V), 0.2, dtype=torch.float64)
    m, rows = torch.zeros_like(S), []
    tokens = [{name: x[:, t] for name, x in given.items()} for t in range(T)]
    for begin in range(0, T, period):
        samples = tokens[begin : begin + period]
        old = S
        if len(samples) == period:
            parts, keeps = [], []
            for x in samples:
                e = torch.einsum("bhk,bhkv->bhv", x["k"], S) - x["v"]
                part = (1.0 if rule else rate_of(rate, x)) * torch.einsum("bhk,bhv->bhkv", x["k"], e)
                if two:
                    e = torch.einsum("bhk,bhkv->bhv", x["p"], S) - x["u"]
                    part = part + x["theta"].tanh()[..., None, None] * torch.einsum("bhk,bhv->bhkv", x["p"], e)
                parts.append(part)
                keeps.append(keep_of(keep, x))
            if fold == "last":
                G, kept = parts[-1], keeps[-1]
            else:
                G = torch.stack(parts).sum(0) / (period if fold == "mean" else 1)
                kept = torch.ones((), dtype=torch.float64)
                for each in keeps:
                    kept = kept * each
            if rule:
                end = samples[-1]
                m = end["theta"].tanh()[..., None, None] * m - end["eta"].sigmoid()[..., None, None] * G
                S = kept * S + m
            else:
                S = kept * S - G
        for i, x in enumerate(samples):
            seen = S if read == "after" and i == period - 1 else old
            rows.append(torch.einsum("bhk,bhkv->bhv", x["q"], seen))
    return torch.stack(rows, 1), S


def in_calls(module: CompiledSpec, given: Tensors, cuts: tuple[int, ...]) -> tuple[Tensor, Tensors]:
    pieces, state = [], None
    for start, stop in itertools.pairwise((0, *cuts, T)):
        if stop - start == 1 and state is not None:
            made, state = module.step({name: x[:, start] for name, x in given.items()}, state)
            made = {name: x.unsqueeze(1) for name, x in made.items()}
        else:
            made, state = module({name: x[:, start:stop] for name, x in given.items()}, state)
        pieces.append(made["o"])
    assert state is not None
    return torch.cat(pieces, 1), state


def gradients(o: Tensor, S: Tensor, given: Tensors) -> tuple[Tensor, ...]:
    return torch.autograd.grad(o.sin().sum() + S.cos().sum(), list(given.values()), materialize_grads=True)


def assert_is_loop(spec: str, given: Tensors, wanted: tuple[Tensor, Tensor]) -> None:
    theirs = gradients(*wanted, given)
    for backend, options in FORMS:
        module = nlc.compile(loads(spec, "folded.yaml"), backend=backend, **options)
        for cuts in ((), (1, 6, 7), (3, 4, 5, 11)) if backend == "eager" else ((),):
            o, state = in_calls(module, given, cuts)
            for ours, right in [(o, wanted[0]), (state["S"], wanted[1]), *zip(gradients(o, state["S"], given), theirs, strict=True)]:
                torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-10, msg=lambda m: f"{backend} {options} {cuts}: {m}")  # noqa: B023


CASES = [
    # period, rate, keep, rule, read
    (4, "absent", "absent", False, "after"),
    (4, "data", "data", False, "start"),
    (3, "data", "log", False, "before"),
    (2, "number", "number", False, "after"),
    (5, "channels", "power", False, "after"),
    (3, "data", "channels", False, "start"),
    (4, "number", "zeros", False, "after"),
    (4, "absent", "absent", True, "after"),
    (3, "absent", "data", True, "before"),
    (2, "absent", "number", True, "start"),
    (16, "data", "data", False, "after"),
]


@pytest.mark.parametrize("fold", ["sum", "mean", "last"])
@pytest.mark.parametrize(("period", "rate", "keep", "rule", "read"), CASES, ids=lambda x: str(x))
def test_a_folded_period_is_the_loop(fold: str, period: int, rate: str, keep: str, rule: bool, read: str) -> None:
    given = numbers()

    wanted = loop(given, fold, period, rate, keep, rule, read)

    assert_is_loop(text(f", fold: {fold}", period, rate, keep, rule, read), given, wanted)


@pytest.mark.parametrize("fold", ["sum", "mean", "last"])
def test_several_writes_are_added_before_they_are_folded(fold: str) -> None:
    given = numbers()
    spec = text(f", fold: {fold}", 3, "data", "data", False, "after", "{key: p, value: u, minimize: l2, rate: tanh(theta)}")

    assert_is_loop(spec, given, loop(given, fold, 3, "data", "data", False, "after", two=True))


def test_sum_is_the_default() -> None:
    specs = [text(fold, 4, "data", "data", False, "after") for fold in ("", ", fold: sum", ", fold: {token: sum}")]

    outputs = [nlc.compile(loads(spec, "a.yaml"), backend="eager")(numbers())[0]["o"] for spec in specs]

    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("fold", ["sum", "mean", "last"])
@pytest.mark.parametrize("period", [2, 3, 5, 16])
@pytest.mark.parametrize("form", ["recurrent", "chunkwise"])
def test_there_are_as_many_updates_as_whole_periods(form: str, period: int, fold: str) -> None:
    module = nlc.compile(loads(text(f", fold: {fold}", period, "data", "data", True, "after"), "a.yaml"), backend="eager", form=form)
    given = {name: x.detach() for name, x in numbers().items()}
    memories: list[list[Tensor]] = []
    state = None
    for t in range(T):
        _, state = module({name: x[:, t : t + 1] for name, x in given.items()}, state)
        memories.append([state["S"], state["S.momentum"]])

    for seen in zip(*memories, strict=True):
        changes = [t + 1 for t in range(1, T) if not torch.equal(seen[t], seen[t - 1])]
        assert changes == list(range(period, T + 1, period))
        assert len(changes) == T // period


def test_keys_of_the_state() -> None:
    def keys(fold: str, keep: str) -> list[str]:
        graph = nlc.compile(loads(text(fold, 4, "data", keep, False, "after"), "a.yaml"), backend="reference").graph
        return [item.key for item in state_tensors(graph)]

    assert keys(", fold: sum", "absent") == ["S", "S.sum", "position"]
    assert keys(", fold: mean", "power") == ["S", "S.sum", "position"]
    assert keys(", fold: sum", "data") == ["S", "S.sum", "S.kept", "position"]
    assert keys(", fold: last", "data") == ["S", "position"]


FUNCTION = """nlc: 1
name: deep
dims: {{H: 2, K: 3, h: 5, V: 4}}
inputs: {{q: [H, K], k: [H, K], v: [H, K], p: [H, K], u: [H, V], beta: [H], g: [H], eta: [H], theta: [H], c: [H, K]}}
levels:
  memory:
    every: 4 tokens
    learners:
      S:
        store: {{params: {{A: [h, K], C: [K, h]}}, call: "z -> C @ tanh(A @ z)"}}
        per: [H]
        init: eye
        read: {read}
        learn: {{key: k, value: v, fold: {fold}, keep: {{A: sigmoid(g), C: 0.9}}{rule}}}
outputs: {{o: S(q)}}
"""


@pytest.mark.parametrize("fold", ["sum", "mean", "last"])
@pytest.mark.parametrize(("rule", "read"), [(False, "after"), (True, "start"), (True, "after")])
def test_a_function_of_several_tensors_is_folded_by_the_reference(fold: str, rule: bool, read: str) -> None:
    given = numbers() | {"v": numbers()["q"].detach().requires_grad_()}
    spec = FUNCTION.format(fold=fold, read=read, rule=RULE if rule else ", rate: sigmoid(beta)")
    w = {"A": torch.eye(5, 3).double().expand(B, H, 5, 3), "C": torch.eye(3, 5).double().expand(B, H, 3, 5)}
    m = {name: torch.zeros_like(x) for name, x in w.items()}
    rows = []

    def call(z: Tensor, w: Tensors) -> Tensor:
        return torch.einsum("bhki,bhi->bhk", w["C"], torch.tanh(torch.einsum("bhik,bhk->bhi", w["A"], z)))

    G: Tensors = {}
    for t in range(T):
        x = {name: value[:, t] for name, value in given.items()}
        one = {name: value[..., None, None] for name, value in x.items() if value.dim() == 2}
        leaves = {n: tensor.clone() if tensor.requires_grad else tensor.clone().requires_grad_() for n, tensor in w.items()}
        loss = 0.5 * ((call(x["k"], leaves) - x["v"]) ** 2).sum()
        g = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), create_graph=True), strict=True))
        if not rule:
            g = {n: one["beta"].sigmoid() * part for n, part in g.items()}
        if t % 4 == 0 or fold == "last":
            G, keep = g, {"A": one["g"].sigmoid(), "C": torch.full((), 0.9, dtype=torch.float64)}
        else:
            G, keep = {n: G[n] + g[n] for n in g}, {"A": keep["A"] * one["g"].sigmoid(), "C": keep["C"] * 0.9}
        old = w
        if t % 4 == 3:
            G = {n: part / (4 if fold == "mean" else 1) for n, part in G.items()}
            if rule:
                m = {n: one["theta"].tanh() * m[n] - one["eta"].sigmoid() * G[n] for n in m}
            w = {n: keep[n] * w[n] + (m[n] if rule else -G[n]) for n in w}
        rows.append(call(x["q"], w if read == "after" else old))

    module = nlc.compile(loads(spec, "deep.yaml"), backend="reference")
    o, state = in_calls(module, given, (1, 6))

    torch.testing.assert_close(o, torch.stack(rows, 1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state["S.A"], w["A"], rtol=1e-10, atol=1e-10)
    used = [given[name] for name in ("q", "k", "v", "g")]
    ours, theirs = (torch.autograd.grad(x.sin().sum(), used) for x in (o, torch.stack(rows, 1)))
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


def test_a_function_of_several_tensors_is_refused_by_the_compiling_backends() -> None:
    with pytest.raises(BackendError, match="folded over a period"):
        nlc.compile(loads(FUNCTION.format(fold="sum", read="after", rule=""), "deep.yaml"), backend="eager")
