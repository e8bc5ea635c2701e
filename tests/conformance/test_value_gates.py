"""Gates and rates that differ between the channels of the values: every form against the reference, and one of them against a loop."""

import pytest
import torch

import nlc
from nlc.diagnostics import BackendError
from nlc.graph.linear import LinearForm
from nlc.language.load import loads
from tests.conformance.comparing import assert_equal, assert_forms_agree, numbers, with_gradients

SPEC = """nlc: 1
name: values
dims: {{H: 2, K: 3, V: 4, R: 2}}
inputs: {{q: [{H}K], k: [{H}K], v: [{H}V], p: [{H}K], u: [{H}V], w: [{H}V], g: [{H}V], c: [{H}K], a: [{h}], kr: [R, {H}K], vr: [R, {H}V]}}
levels:
  memory:
    every: {every}
    learners:
      S: {{store: {store}{per}, init: 0.3, read: {read}, learn: {learn}}}
outputs: {{o: {out}}}
"""
CASES = {
    "gated": ("1 token", "{key: k, value: v, minimize: dot, keep: sigmoid(g)}"),
    "logarithmic": ("1 token", "{key: k, value: v, minimize: dot, keep: exp(-g^2)}"),
    "delta": ("1 token", "{key: k, value: v, rate: sigmoid(w), keep: sigmoid(g)}"),
    "decayed": ("1 token", "{key: k, value: v, rate: sigmoid(w), keep: sigmoid(g), at: decayed}"),
    "gate is the value": ("1 token", "{key: k, value: v, minimize: dot, keep: v}"),
    "both sides": ("1 token", "{key: k, value: v, rate: sigmoid(w), keep: sigmoid(c)}"),
    "anchor": ("4 tokens", "{key: k, value: v, rate: sigmoid(w), keep: sigmoid(g), fold: each}"),
    "sum": ("3 tokens", "{key: k, value: v, rate: sigmoid(w), keep: sigmoid(g)}"),
    "momentum": ("1 token", "{key: k, value: v, keep: sigmoid(g), rule: {momentum: {rate: sigmoid(w), decay: sigmoid(c)}}}"),
    "erase": ("1 token", "{key: k, value: v, minimize: dot, rule: {dgd: {rate: 0.3, keep: sigmoid(g)}}}"),
    "two writes": ("1 token", "[{key: k, value: v, rate: sigmoid(w), keep: sigmoid(g)}, {key: p, value: u - self(k), minimize: dot}]"),
    "probes": ("1 token", "{key: k, value: v - w * self(p), rate: 0.5, keep: sigmoid(g)}"),
    "samples": ("1 token", "{key: kr, value: vr, rate: sigmoid(w), keep: sigmoid(g), at: decayed, fold: {R: each}}"),
    "times": ("1 token", "{key: k, value: v, rate: sigmoid(w), keep: sigmoid(g), times: 2}"),
}


def spec(every: str, learn: str, read: str = "after", store: str = "{matrix: [K, V]}", out: str = "S(q)", heads: bool = True) -> str:
    places = {"H": "H, ", "h": "H", "per": ", per: [H]"} if heads else {"H": "", "h": "1", "per": ""}
    return SPEC.format(every=every, learn=learn, read=read, store=store, out=out, **places)


@pytest.mark.parametrize("name", CASES)
def test_every_form_agrees_with_the_reference(name: str) -> None:
    every, learn = CASES[name]
    read = "before" if name in ("delta", "sum") else "start" if name == "anchor" else "after"

    assert_forms_agree(loads(spec(every, learn, read), "case.yaml"))


@pytest.mark.parametrize("heads", [False, True])
def test_channels_of_a_store_without_keys_have_gates(heads: bool) -> None:
    learn = "{value: v, rate: sigmoid(w), keep: sigmoid(g)}"

    assert_forms_agree(loads(spec("1 token", learn, store="{vector: [V]}", out="S()", heads=heads), "case.yaml"))


def test_a_memory_without_copies_and_two_in_a_bucket() -> None:
    one = spec("1 token", CASES["delta"][1], heads=False)
    two = one.replace("outputs:", f"      M: {{store: {{matrix: [K, V]}}, learn: {CASES['delta'][1]}}}\noutputs:")

    assert_forms_agree(loads(two.replace("o: S(q)", "o: S(q) + M(p)"), "case.yaml"))


@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_a_channel_is_a_delta_rule_of_its_own(backend: str) -> None:
    module = nlc.compile(loads(spec("1 token", CASES["decayed"][1]), "case.yaml"), backend=backend).double()
    x, first = numbers(module, 9)
    S, rows = first["S"], []
    for t in range(9):
        k, gate, rate = x["k"][:, t], x["g"][:, t].sigmoid(), x["w"][:, t].sigmoid()
        S = S * gate[:, :, None, :]
        e = torch.einsum("bhk,bhkv->bhv", k, S) - x["v"][:, t]
        S = S - k[..., None] * (rate * e)[..., None, :]
        rows.append(torch.einsum("bhk,bhkv->bhv", x["q"][:, t], S))
    outputs, state = module(x, first)
    leaves = {**x, "S": first["S"]}

    wanted = with_gradients({"o": torch.stack(rows, 1), "S": S}, leaves)
    assert_equal(with_gradients({"o": outputs["o"], "S": state["S"]}, leaves), wanted, 1e-11)


def test_its_class_is_channel_gated_and_no_other_spec_is_its_equal() -> None:
    module = nlc.compile(loads(spec("1 token", CASES["gated"][1]), "case.yaml"), backend="eager")

    form = module.graph.learners["S"].linear

    assert isinstance(form, LinearForm) and form.apart and form.kind == "channel gated"


def test_errors_on_the_side_of_the_keys_take_gates_of_copies() -> None:
    learn = '{key: k, value: v, minimize: "0.5 * sum((self.W @ value)^2) - sum(pred * value)", keep: sigmoid(g)}'

    with pytest.raises(BackendError, match="channels of its values"):
        nlc.compile(loads(spec("1 token", learn), "case.yaml"), backend="eager")
