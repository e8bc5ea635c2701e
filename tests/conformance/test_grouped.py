"""Grouped heads by names of axes, and feature maps of keys and queries: every form against the reference, heads against a loop."""

import pytest
import torch

import nlc
from nlc.language.load import loads
from tests.conformance.comparing import assert_equal, assert_forms_agree, numbers, with_gradients

SPEC = """nlc: 1
name: grouped
dims: {{G: 2, R: 3, K: 2, V: 3, F: 4}}
inputs: {{q: [G, K], k: [G, K], v: [G, R, V], b: [G], g: [R], x: [K]}}
flows: {{fk: {feature_k}, fq: {feature_q}}}
levels:
  memory:
    every: {every}
    learners:
      S: {{store: {{matrix: [{keys}, V]}}, per: [G, R], init: 0.3, learn: {{key: fk, value: v, {learn}}}}}
outputs: {{o: S(fq)}}
"""
LEARN = {
    "delta": ("1 token", "rate: sigmoid(b), keep: sigmoid(g), at: decayed"),
    "linear": ("1 token", "minimize: dot, keep: exp(-g^2)"),
    "anchor": ("4 tokens", "rate: sigmoid(b), keep: sigmoid(g), fold: each"),
}
FEATURES = {"plain": "{}", "elu": "elu({}) + 1", "powers": "{} + 0.5 * {}^2 + {}^3", "learned": "relu(linear({}, [F]))"}


def spec(every: str, learn: str, feature: str = "plain") -> str:
    made = {f"feature_{z}": f'"{FEATURES[feature].replace("{}", z)}"' for z in "kq"}
    return SPEC.format(every=every, learn=learn, keys="F" if feature == "learned" else "K", **made)


@pytest.mark.parametrize("name", LEARN)
def test_fewer_key_heads_than_value_heads(name: str) -> None:
    assert_forms_agree(loads(spec(*LEARN[name]), "case.yaml"))


@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_each_head_of_a_group_is_a_memory_with_the_group_s_key(backend: str) -> None:
    module = nlc.compile(loads(spec(*LEARN["delta"]), "case.yaml"), backend=backend).double()
    x, first = numbers(module, 9)
    heads = []
    for r in range(3):
        S = first["S"][:, :, r]
        for t in range(9):
            S = x["g"][:, t, r, None, None, None].sigmoid() * S
            e = torch.einsum("bgk,bgkv->bgv", x["k"][:, t], S) - x["v"][:, t, :, r]
            S = S - x["b"][:, t, :, None, None].sigmoid() * torch.einsum("bgk,bgv->bgkv", x["k"][:, t], e)
            heads.append(torch.einsum("bgk,bgkv->bgv", x["q"][:, t], S))
    wanted = torch.stack([torch.stack(heads[9 * r : 9 * r + 9], 1) for r in range(3)], 3)
    outputs, _ = module(x, first)
    leaves = {**x, "S": first["S"]}

    assert_equal(with_gradients({"o": outputs["o"]}, leaves), with_gradients({"o": wanted}, leaves), 1e-11)


@pytest.mark.parametrize("feature", FEATURES)
def test_features_of_keys_and_queries(feature: str) -> None:
    text = spec("1 token", "rate: 0.3 * sigmoid(b)", feature)
    text = text if feature != "learned" else text.replace("q: [G, K], k: [G, K]", "q: [K], k: [K]")

    assert_forms_agree(loads(text, "case.yaml"))
