"""`times: n`, several steps on one sample: every form against the reference, and the reference against loops."""

import pytest
import torch

import nlc
from nlc.diagnostics import BackendError
from nlc.language.load import loads
from tests.conformance.comparing import assert_equal, assert_forms_agree, numbers, with_gradients

SPEC = """nlc: 1
name: steps
dims: {{H: 2, K: 3, V: 4, h: 3, n: 3}}
inputs: {{q: [H, K], k: [H, K], v: [H, V], p: [H, K], u: [H, V], b: [H], a: [H], c: [H, K]}}
levels:
  memory:
    every: 1 token
    learners:
      S: {{store: {store}, per: [H], init: 0.3, read: {read}, learn: {learn}}}
outputs: {{o: {out}}}
"""
CASES = {
    "delta": "{key: k, value: v, rate: sigmoid(b), times: n}",
    "gated": "{key: k, value: v, rate: sigmoid(b), keep: exp(-a^2), times: 2}",
    "decayed": "{key: k, value: v, rate: sigmoid(b), keep: sigmoid(a), at: decayed, times: 3}",
    "channels": "{key: k, value: v, rate: sigmoid(c), keep: sigmoid(c), times: 2}",
    "dot": "{key: k, value: v, minimize: dot, keep: sigmoid(a), times: 2}",
    "momentum": "{key: k, value: v, keep: sigmoid(a), rule: {momentum: {rate: sigmoid(b), decay: 0.5}}, times: 3}",
    "erase": "{key: k, value: v, keep: sigmoid(a), rule: {dgd: {rate: sigmoid(b), keep: sigmoid(a)}}, times: 2}",
    "own target": "{key: k, value: v - self(p), minimize: dot, rate: sigmoid(b), times: 2}",
    "two writes": "[{key: k, value: v, rate: sigmoid(b), keep: sigmoid(a), times: 2}, {key: p, value: u, rate: 0.3}]",
    "implicit": "{key: k, value: v, rate: sigmoid(b), keep: sigmoid(a), solve: implicit, times: 2}",
    "once": "{key: k, value: v, rate: sigmoid(b), times: 1}",
}
MLP = "{params: {W1: [h, K], W2: [V, h]}, call: z -> W2 @ gelu(W1 @ z)}"


def spec(learn: str, store: str = "{matrix: [K, V]}", read: str = "after", out: str = "S(q)") -> str:
    return SPEC.format(store=store, learn=learn, read=read, out=out)


@pytest.mark.parametrize("name", CASES)
def test_every_form_agrees_with_the_reference(name: str) -> None:
    assert_forms_agree(loads(spec(CASES[name], read="before" if name == "gated" else "after"), "case.yaml"))


def test_a_value_takes_its_steps() -> None:
    learn = "{value: v, rate: 0.3, keep: sigmoid(a), times: 3}"

    assert_forms_agree(loads(spec(learn, "{vector: [V]}", out="S()"), "case.yaml"))


@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_they_are_steps_one_after_the_other_with_one_decay(backend: str) -> None:
    module = nlc.compile(loads(spec(CASES["decayed"]), "case.yaml"), backend=backend).double()
    x, first = numbers(module, 6)
    S, rows = first["S"], []
    for t in range(6):
        k, v = x["k"][:, t], x["v"][:, t]
        S = x["a"][:, t, :, None, None].sigmoid() * S
        for _ in range(3):
            e = torch.einsum("bhk,bhkv->bhv", k, S) - v
            S = S - x["b"][:, t, :, None, None].sigmoid() * torch.einsum("bhk,bhv->bhkv", k, e)
        rows.append(torch.einsum("bhk,bhkv->bhv", x["q"][:, t], S))
    outputs, state = module(x, first)
    leaves = {**x, "S": first["S"]}

    assert_equal(
        with_gradients({"o": outputs["o"], "S": state["S"]}, leaves), with_gradients({"o": torch.stack(rows, 1), "S": S}, leaves), 1e-11
    )


@pytest.mark.parametrize("momentum", [False, True])
def test_all_tensors_of_a_function_step_together(momentum: bool) -> None:
    rule = "rule: {momentum: {rate: 0.2, decay: 0.5}}" if momentum else "rate: 0.2"
    text = spec(f"{{key: k, value: v, keep: sigmoid(a), {rule}, times: 3}}", MLP)
    module = nlc.compile(loads(text, "case.yaml"), backend="reference").double()
    x, first = numbers(module, 2)
    w = [first[f"S.{name}"] for name in ("W1", "W2")]
    m = [first.get(f"S.momentum.{name}", torch.zeros(())) for name in ("W1", "W2")]
    for t in range(2):
        for i in range(3):
            W1, W2 = w
            pred = torch.einsum("bhvc,bhc->bhv", W2, torch.nn.functional.gelu(torch.einsum("bhck,bhk->bhc", W1, x["k"][:, t])))
            loss = 0.5 * ((pred - x["v"][:, t]) ** 2).sum()
            g = torch.autograd.grad(loss, w, create_graph=True)
            keep = x["a"][:, t, :, None, None].sigmoid() if i == 0 else 1.0
            m = [0.5 * each - 0.2 * slope if momentum else -0.2 * slope for each, slope in zip(m, g, strict=True)]
            w = [keep * each + step for each, step in zip(w, m, strict=True)]

    _, state = module(x, first)

    for name, each in zip(("W1", "W2"), w, strict=True):
        torch.testing.assert_close(state[f"S.{name}"], each, rtol=1e-11, atol=1e-11)


def test_steps_of_a_function_are_not_compiled() -> None:
    with pytest.raises(BackendError, match="NLC601"):
        nlc.compile(loads(spec("{key: k, value: v, rate: 0.2, times: 3}", MLP), "case.yaml"), backend="eager")
