"""Rules, objectives and views that no linear recurrence holds, with gradients at the start of a period: compiled against the reference, and
against loops written here from the formulas."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

import nlc
from nlc.language.load import loads
from nlc.runtime.compiled import CompiledSpec
from tests.conformance.comparing import assert_close, assert_equal, in_calls, with_gradients

Tensors = dict[str, Tensor]
B, T, C = 2, 11, 4
SPEC = """
nlc: 1
name: case
dims: {{H: 2, K: 5, V: 3}}
inputs: {{q: [H, K], k: [H, K], v: [H, V], eta: [H], alpha: [H]}}
levels:
  memory:
    every: {every}
    learners:
      S: {{store: {store}, per: [H], init: learned, {view}read: {read}, learn: {{{key}value: v, {fold}{learn}, keep: alpha}}}}
outputs: {{o: {call}}}
"""
RULES = {
    "muon": "rule: {muon: {rate: eta, decay: alpha}}",
    "adam": "rule: {adamw: {lr: eta}}",
    "cubed": "rate: eta, minimize: sum(abs(pred - value)^3)",
    "bounded": "rate: eta, minimize: {huber: {delta: 0.3}}",
    "gd": "rate: eta",
    "momentum": "rule: {momentum: {rate: eta, decay: alpha}}",
}
VIEWS = {"": "", "softmax": "view: w -> softmax(w), ", "norm": "view: w -> w / (1 + sum(w^2))^0.5, "}
MATRIX, VECTOR = "{matrix: [K, V]}", "{vector: [V]}"


def text(store: str = MATRIX, rule: str = "muon", view: str = "", every: int = C, read: str = "after") -> str:
    key, call = ("key: k, ", "S(q)") if store == MATRIX else ("", "S()")
    period = f"{every} tokens" if every > 1 else "1 token"
    fold = "fold: each, " if every > 1 else ""
    return SPEC.format(every=period, store=store, view=VIEWS[view], read=read, key=key, fold=fold, learn=RULES[rule], call=call)


def compiled(spec: str, backend: str) -> CompiledSpec:
    return nlc.compile(loads(spec, "case.yaml"), backend=backend).double()


def numbers(module: CompiledSpec) -> tuple[Tensors, Tensors]:
    """Inputs, and a state at the start of a stream."""
    generator = torch.Generator().manual_seed(1)
    inputs = {}
    for name in module.graph.inputs:
        x = torch.randn(B, T, *(a.size for a in module.graph.flows[name].axes), generator=generator, dtype=torch.float64)
        inputs[name] = (0.2 * x.sigmoid() if name == "eta" else x.sigmoid() if name == "alpha" else 0.5 * x).requires_grad_()
    state = module.initial_state(B)
    first = {key: 0.5 * torch.randn(state["S"].shape, generator=generator, dtype=torch.float64) for key in state if key == "S"}
    anchors = {key: first["S"] for key in state if key == "S.anchor"}
    rest = {key: x.double() if x.is_floating_point() else x for key, x in state.items()}
    return inputs, {**rest, **{key: x.requires_grad_() for key, x in first.items()}, **anchors}


def run(module: CompiledSpec, inputs: Tensors, first: Tensors) -> Tensors:
    outputs, state = module(inputs, first)
    found = {**outputs, **{f"state {key}": x for key, x in state.items() if x.is_floating_point()}}
    return with_gradients(found, {**inputs, "first": first["S"]})


CASES = [
    *((MATRIX, rule, view, every, "after") for rule, view, every in product(RULES, VIEWS, (1, C))),
    *((VECTOR, rule, view, C, "after") for rule, view in product(("adam", "cubed", "momentum"), VIEWS)),
    *((MATRIX, rule, "", C, read) for rule, read in product(("muon", "adam"), ("before", "start"))),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case[1:])))
def test_compiled_agrees_with_the_reference(case: tuple[str, str, str, int, str]) -> None:
    spec = text(*case)
    ours, theirs = compiled(spec, "eager"), compiled(spec, "reference")
    given = numbers(theirs)

    assert_equal(run(ours, *given), run(theirs, *given), 1e-10)


@pytest.mark.parametrize("rule", ["muon", "adam"])
@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_a_stream_may_be_cut_inside_a_period(rule: str, backend: str) -> None:
    module = compiled(text(rule=rule, view="norm"), backend)
    inputs, first = numbers(module)

    whole, last = module(inputs, first)

    assert_close(in_calls(module, inputs, first, (3, 7)), {"o": whole["o"], **last}, 1e-12)


def adam(gradient: Tensor, memory: dict[str, Tensor], age: int) -> Tensor:
    """The direction of Adam (Kingma and Ba 2015, algorithm 1)."""
    memory["m"] = 0.9 * memory.get("m", torch.zeros_like(gradient)) + 0.1 * gradient
    memory["s"] = 0.999 * memory.get("s", torch.zeros_like(gradient)) + 0.001 * gradient**2
    return -(memory["m"] / (1 - 0.9**age)) / ((memory["s"] / (1 - 0.999**age)).sqrt() + 1e-8)


def muon(gradient: Tensor, memory: dict[str, Tensor], age: int, decay: Tensor) -> Tensor:
    """Momentum, then five steps of Newton-Schulz (Jordan et al. 2024). The tensor has its keys first: its rows are columns here."""
    memory["m"] = decay * memory.get("m", torch.zeros_like(gradient)) - gradient
    x = memory["m"] / memory["m"].pow(2).sum((-2, -1), keepdim=True).sqrt()
    for _ in range(5):
        x = 3.4445 * x - 4.775 * x @ x.mT @ x + 2.0315 * x @ x.mT @ x @ x.mT @ x
    return max(1, x.shape[-1] / x.shape[-2]) ** 0.5 * x


def loop(inputs: Tensors, W: Tensor, direction: Callable[..., Tensor], decays: bool) -> Tensor:
    """Delta errors at the start of a period of C tokens; W <- keep W + rate * direction, read after the write."""
    anchor, rows = W, []
    memory: dict[str, Tensor] = {}
    for t in range(T):
        q, k, v, eta, alpha = (inputs[name][:, t] for name in ("q", "k", "v", "eta", "alpha"))
        anchor = W if t % C == 0 else anchor
        error = torch.einsum("bhk,bhkv->bhv", k, anchor) - v
        gradient = torch.einsum("bhk,bhv->bhkv", k, error)
        more = (alpha[..., None, None],) if decays else ()
        kept = alpha[..., None, None] * W * (1 if decays else 1 - eta[..., None, None] * 0.01)
        W = kept + eta[..., None, None] * direction(gradient, memory, t + 1, *more)
        rows.append(torch.einsum("bhk,bhkv->bhv", q, W))
    return torch.stack(rows, 1)


@pytest.mark.parametrize("backend", ["reference", "eager"])
@pytest.mark.parametrize(("rule", "direction"), [("adam", adam), ("muon", muon)])
def test_an_optimiser_in_the_sequence_is_its_formula(backend: str, rule: str, direction: Callable[..., Tensor]) -> None:
    module = compiled(text(rule=rule), backend)
    inputs, first = numbers(module)
    leaves = {**inputs, "first": first["S"]}

    outputs, _ = module(inputs, first)

    wanted = with_gradients({"o": loop(inputs, first["S"], direction, rule == "muon")}, leaves)
    assert_close(with_gradients({"o": outputs["o"]}, leaves), wanted, 1e-10)


STILL = """
nlc: 1
name: still
dims: {V: 3, D: 2, E: 5}
inputs: {v: [V], token: {index: E}}
flows: {y: "linear(S(), D)"}
levels:
  memory:
    every: 4 tokens
    learners:
      S: {store: {vector: [V]}, read: start, view: w -> w / (1 + sum(w^2))^0.5, learn: {value: v, fold: each}}
outputs: {o: ANSWER}
loss: cross_entropy(unembed(y, E), next(token))
"""


@pytest.mark.parametrize("answer", ["S()", "y", "y + mean(v)"])
def test_what_stands_still_within_a_period_is_there_at_each_token(answer: str) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "v": torch.randn(2, 9, 3, generator=generator, dtype=torch.float64),
        "token": torch.randint(0, 5, (2, 9), generator=generator),
    }
    ours, theirs = (nlc.compile(loads(STILL.replace("ANSWER", answer), "still.yaml"), backend=b).double() for b in ("eager", "reference"))

    found, wanted = ({"o": m(inputs)[0]["o"], "loss": m.loss(inputs)[0]} for m in (ours, theirs))

    assert found["o"].shape == (2, 9, 3 if answer == "S()" else 2)
    assert_close(found, wanted, 1e-12)


def test_newton_schulz_acts_on_the_singular_values() -> None:
    """U p(S) V^T with p the polynomial, five times; zero stays zero, wide and tall are the same."""
    spec = 'nlc: 1\nname: ns\ndims: {K: 4, V: 6}\ninputs: {x: [K, V]}\noutputs: {y: "newton_schulz(x, 5)"}\n'
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[0, 0] = 0
    U, S, V = torch.linalg.svd(x, full_matrices=False)
    s = S / S.norm(dim=-1, keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5

    for backend in ("reference", "eager"):
        outputs, _ = compiled(spec, backend)({"x": x})
        assert_close({"y": outputs["y"]}, {"y": U @ torch.diag_embed(s) @ V}, 1e-12)
