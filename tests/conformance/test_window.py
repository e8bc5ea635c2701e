"""`over: c tokens` with a gradient step: every form against the reference, and against a loop over the samples of each window."""

import pytest
import torch
from torch import Tensor

import nlc
from nlc.language.load import loads
from nlc.runtime.compiled import CompiledSpec
from tests.conformance.comparing import ROOT, assert_equal, in_calls, with_gradients

B, T, C = 2, 13, 3
OMEGA = (ROOT / "specs" / "ops" / "omega.yaml").read_text(encoding="utf-8")
CASES = {
    "as it is": OMEGA,
    "a gate of each channel": OMEGA.replace("alpha: [H]", "alpha: [H, K]"),
    "at the decayed state": OMEGA.replace("keep: alpha", "keep: alpha, at: decayed"),
    "dot": OMEGA.replace("value: v,", "value: v, minimize: dot,"),
    "without weights": OMEGA.replace("weight: gamma, ", ""),
    "without a rate": OMEGA.replace("rate: eta, ", ""),
    "a number as weight": OMEGA.replace("weight: gamma", "weight: 0.5"),
    "momentum": OMEGA.replace("rate: eta", "rule: {momentum: {rate: eta, decay: 0.5}}"),
    "features": OMEGA.replace("key: k", "key: l2norm(k * k)"),
    "a rate and a weight of other copies": OMEGA.replace("gamma: [H], eta: [H]", "gamma: [A], eta: [H]")
    .replace("dims: {", "dims: {A: 2, ")
    .replace("[H, K]", "[A, H, K]")
    .replace("[H, V]", "[A, H, V]")
    .replace("per: [H]", "per: [A, H]"),
    "one token": OMEGA.replace("over: c tokens", "over: 1 token"),
}


def compiled(text: str, **how: object) -> CompiledSpec:
    return nlc.compile(loads(text, "case.yaml"), dims={"H": 2, "K": 5, "V": 3, "c": C}, **how).double()  # type: ignore[arg-type]


def numbers(module: CompiledSpec) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs, and a state in the middle of a stream."""
    generator = torch.Generator().manual_seed(1)
    inputs = {}
    for name in module.graph.inputs:
        x = 0.5 * torch.randn(B, T, *(a.size for a in module.graph.flows[name].axes), generator=generator, dtype=torch.float64)
        inputs[name] = (x.sigmoid() if name in ("gamma", "eta", "alpha") else x).requires_grad_()
    first = {key: 0.5 * torch.randn(x.shape, generator=generator, dtype=torch.float64) for key, x in module.initial_state(B).items()}
    return inputs, {key: x.requires_grad_() for key, x in first.items()}


def run(module: CompiledSpec, inputs: dict[str, Tensor], first: dict[str, Tensor]) -> dict[str, Tensor]:
    outputs, state = module(inputs, first)
    found = {**outputs, **{f"state {key}": x for key, x in state.items()}}
    return with_gradients(found, {**inputs, **{f"first {key}": x for key, x in first.items()}})


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("how", [{"chunk": 4}, {"chunk": 32}, {"form": "recurrent"}], ids=str)
def test_every_form_agrees_with_the_reference(name: str, how: dict[str, object]) -> None:
    ours, theirs = compiled(CASES[name], backend="eager", **how), compiled(CASES[name], backend="reference")
    given = numbers(theirs)

    assert_equal(run(ours, *given), run(theirs, *given), 1e-10)


@pytest.mark.parametrize("length", [C, 1])
@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_omega_is_its_formula(backend: str, length: int) -> None:
    """W <- alpha W - eta sum over the last c samples of gamma_i k_i (W^T k_i - v_i)^T, all at the old W."""
    module = compiled(OMEGA.replace("over: c tokens", f"over: {length} token{'s' if length > 1 else ''}"), backend=backend)
    x, _ = numbers(module)
    W, rows = torch.zeros(B, 2, 5, 3, dtype=torch.float64), []
    for t in range(T):
        gradient = torch.zeros_like(W)
        for i in range(max(0, t - length + 1), t + 1):
            k, v, gamma = x["k"][:, i], x["v"][:, i], x["gamma"][:, i, :, None, None]
            gradient = gradient + gamma * torch.einsum("bhk,bhv->bhkv", k, torch.einsum("bhk,bhkv->bhv", k, W) - v)
        W = x["alpha"][:, t, :, None, None] * W - x["eta"][:, t, :, None, None] * gradient
        rows.append(torch.einsum("bhk,bhkv->bhv", x["q"][:, t], W))
    outputs, state = module(x)

    found = with_gradients({"o": outputs["o"], "state S": state["S"]}, x)
    assert_equal(found, with_gradients({"o": torch.stack(rows, 1), "state S": W}, x), 1e-11)


@pytest.mark.parametrize("name", ["as it is", "momentum"])
def test_a_stream_may_be_cut_anywhere(name: str) -> None:
    module = compiled(CASES[name], backend="eager", chunk=4)
    inputs, state = numbers(module)
    whole, end = module(inputs, state)

    assert_equal(in_calls(module, inputs, state, (3, 4, 9)), {"o": whole["o"], **end}, 1e-12)


@pytest.mark.inductor
def test_compiled_code_agrees_with_the_reference() -> None:
    ours, theirs = compiled(OMEGA, backend="inductor"), compiled(OMEGA, backend="reference")
    given = numbers(theirs)

    assert_equal(run(ours, *given), run(theirs, *given), 1e-10)
