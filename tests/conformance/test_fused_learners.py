"""Memories that learn alike run as one: values, states by name, gradients and streams are those of each by itself."""

from __future__ import annotations

import itertools

import pytest
import torch

import nlc
from nlc.language import loads
from nlc.runtime.compiled import CompiledSpec
from tests.conformance.test_continuum import largest

SPEC = """
nlc: 1
name: boxes
dims: {{d: 4, h: 3}}
inputs: {{x: [d]}}
templates:
  box:
    store: {{params: {{W1: [d, h], W2: [h, d]}}, call: "z -> z + W1 @ gelu(W2 @ z)"}}
    init: learned
    read: {read}
    learn: {{key: k, value: {value}, fold: each, {rule}}}
flows:
  u: rmsnorm(x)
  k: l2norm(A(u))
  eta: 0.2 * sigmoid(mean(B(u), d))
  y: tanh(C(u)) * eta + A(u)
levels:
  boxes: {{every: {every}, learners: {{A: {{use: box}}, B: {{use: box}}, C: {{use: box}}}}}}
outputs: {{y: y, k: k}}
"""
RULES = {
    "gd": "rate: eta",
    "dgd": "rule: {dgd: {rate: eta, keep: 0.9}}",
    "keep": "rate: eta, keep: 'sigmoid(mean(x, d) + 2)'",
    "momentum": "rule: {momentum: {rate: eta, decay: 0.5}}",
}


def made(text: str, backend: str, fuse: bool) -> CompiledSpec:
    compiled = nlc.compile(loads(text), backend=backend, without=() if fuse else ("fuse-learners",)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in compiled.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return compiled


@pytest.mark.parametrize("value", ["self(u)", "x"])
@pytest.mark.parametrize("every", ["4 tokens", "8 tokens"])
@pytest.mark.parametrize("rule", RULES)
def test_one_memory_is_what_each_is(rule: str, every: str, value: str) -> None:
    text = SPEC.format(rule=RULES[rule], every=every, value=value, read="start")
    apart, joined = made(text, "reference", False), made(text, "eager", True)
    x = torch.randn(2, 19, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = []
    for compiled in (apart, joined):
        out, state = compiled({"x": x})
        weights = dict(compiled.named_parameters())
        results.append(
            (
                out,
                state,
                dict(
                    zip(
                        weights,
                        torch.autograd.grad(sum(y.square().sum() for y in out.values()), list(weights.values()), materialize_grads=True),
                        strict=True,
                    )
                ),
            )
        )
    state, parts = joined.initial_state(2), []
    with torch.no_grad():
        for begin, end in itertools.pairwise([0, 1, 5, 6, 13, 19]):
            out, state = joined({"x": x[:, begin:end]}, state)
            parts.append(out["y"])

    assert "JOINED" in joined.source
    for got, wanted in zip(results[1], results[0], strict=True):
        assert largest(got, wanted) < 1e-11
    assert torch.allclose(torch.cat(parts, 1), results[0][0]["y"], rtol=0, atol=1e-11)
    assert largest(state, results[0][1]) < 1e-11
    assert all(torch.equal(a, b) for a, b in zip(apart.state_dict().values(), joined.state_dict().values(), strict=True))


def test_a_stream_keeps_its_state_in_one_place() -> None:
    """A state that a call returned goes into the next one without a copy, and another state, row by row, is as good."""
    joined = made(SPEC.format(rule=RULES["dgd"], every="4 tokens", value="x", read="start"), "eager", True)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        _, state = joined({"x": x})
        copied = {key: torch.cat([value[:1], value[1:]]) for key, value in state.items() if value.dim()} | {
            key: value for key, value in state.items() if not value.dim()
        }
        (one, after), (other, same) = joined({"x": x}, state), joined({"x": x}, copied)

    assert state["A.W1"].untyped_storage().data_ptr() == state["B.W1"].untyped_storage().data_ptr()
    assert torch.equal(one["y"], other["y"])
    assert largest(after, same) == 0


def test_a_layer_of_the_library() -> None:
    """The projections of self-modifying Titans are one memory."""
    dims = {"d": 4, "h": 4, "c": 4, "p": 8}
    models = [
        nlc.compile("blocks/self_modifying_titans", dims=dims, backend=backend, without=without).double()
        for backend, without in (("reference", ("fuse-learners",)), ("eager", ()))
    ]
    x = torch.randn(2, 19, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (wanted, before), (got, after) = (model({"x": x}) for model in models)

    assert "JOINED" in models[1].source
    assert largest(got, wanted) < 1e-11
    assert largest(after, before) < 1e-11


def test_the_projections_of_hope_are_one_memory_in_each_layer() -> None:
    hope = nlc.compile("models/hope", dims={"d": 16, "m": 16, "h": 16, "layers": 2}, backend="eager")
    joined = [
        line.split('"')[1] for line in hope.source.splitlines() if line.strip().endswith("),") and "Mk_Mv" in line and "anchor" not in line
    ]

    assert joined == [f"y.{i}.o.Mk_Mv_Meta_Malpha.{tensor}" for i in range(2) for tensor in ("W1", "W2")]
