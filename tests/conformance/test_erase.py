"""Rules whose keep has `gram(x)`: delta gradient descent inside the sequence, against loops written from its formula and the reference."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import nlc
from nlc.graph.linear import LinearForm
from nlc.language.library import Library
from nlc.language.load import loads
from tests.conformance.comparing import Tensors, assert_equal, assert_forms_agree, numbers, with_gradients

SPEC = """nlc: 1
name: erasing
dims: {{H: 2, K: 3, V: 4, h: 3, R: 2}}
inputs: {{q: [H, K], k: [H, K], v: [H, V], b: [H], a: [H], c: [H, K], kr: [R, H, K], vr: [R, H, V], br: [R, H]}}
{uses}
levels:
  memory:
    every: {every}
    learners:
      S: {{store: {store}, per: [H], init: 0.3, read: {read}, learn: {{{learn}}}}}
outputs: {{o: S(q)}}
"""
DGD = "rule: {dgd: {rate: sigmoid(b), keep: sigmoid(a)}}"
MIXED = """nlc: 1
name: mixed
params: {rate: 0.1, decay: 0.9}
inputs: {g: gradient, x: input}
levels: {buffer: {every: 1 update, learners: {m: {store: {like: g}, learn: {value: -g, minimize: dot, rate: rate, keep: decay}}}}}
outputs: {keep: "(1 - rate * gram(x) / (1 + dot(x, x))) * 0.9 + 0.2 * gram(x)", step: m()}
"""
CASES = {
    "each token": ("1 token", f"key: k, value: v, {DGD}"),
    "logarithmic gate": ("1 token", "key: k, value: v, at: running, rule: {dgd: {rate: sigmoid(b), keep: exp(-a^2)}}"),
    "channel gate": ("1 token", "key: k, value: v, keep: sigmoid(c), at: decayed, rule: {dgd: {rate: sigmoid(b)}}"),
    "anchor": ("4 tokens", f"key: k, value: v, fold: each, {DGD}"),
    "dot at the anchor": ("3 tokens", f"key: k, value: v, minimize: dot, fold: each, keep: sigmoid(c), {DGD}"),
    "running": ("4 tokens", f"key: k, value: v, fold: each, at: running, {DGD}"),
    "last": ("3 tokens", f"key: k, value: v, fold: last, keep: sigmoid(a), {DGD}"),
    "samples": ("1 token", "key: kr, value: vr, fold: {R: each}, at: decayed, keep: sigmoid(a), rule: {dgd: {rate: sigmoid(br)}}"),
    "momentum": ("3 tokens", "key: k, value: v, fold: each, rule: {mixed: {rate: sigmoid(b), decay: sigmoid(a)}}"),
}
MLP = "{params: {W1: [h, K], W2: [V, h]}, call: z -> W2 @ gelu(W1 @ z)}"


def spec(every: str, learn: str, read: str = "after", store: str = "{matrix: [K, V]}", uses: str = "") -> str:
    return SPEC.format(every=every, learn=learn, read=read, store=store, uses=uses)


def test_a_memory_that_keeps_nothing_and_begins_anew_has_nothing_to_erase() -> None:
    text = spec("1 token", "key: k, value: v, keep: 0, at: decayed, rule: {dgd: {rate: sigmoid(b)}}")

    assert_forms_agree(loads(text.replace("init: 0.3", "init: 0.3, reset: {every: 2 tokens}"), "case.yaml"))


@pytest.mark.parametrize("name", CASES)
def test_every_form_agrees_with_the_reference(name: str, tmp_path: Path) -> None:
    every, learn = CASES[name]
    (tmp_path / "mixed.yaml").write_text(MIXED, encoding="utf-8")
    files = Library(search=(tmp_path,))

    assert_forms_agree(loads(spec(every, learn, uses="uses: {mixed: mixed}"), "case.yaml", files), library=files)


@pytest.mark.parametrize("every", ["1 token", "4 tokens"])
def test_each_matrix_of_a_function_erases_with_its_own_input(every: str) -> None:
    fold = ", fold: each" if every != "1 token" else ""

    assert_forms_agree(loads(spec(every, f"key: k, value: v{fold}, {DGD}", store=MLP), "case.yaml"))


def loop(x: Tensors, S: Tensor, period: int) -> Tensors:
    """W <- W (a I - b k k^T) - b (W_anchor k - v) k^T, W = S^T (Nested Learning, eq. 86-88): erased running, graded at the anchor."""
    rows, anchor = [], S
    for t in range(x["k"].shape[1]):
        anchor = S if t % period == 0 else anchor
        k, v = x["k"][:, t], x["v"][:, t]
        a, b = x["a"][:, t, :, None, None].sigmoid(), x["b"][:, t, :, None, None].sigmoid()
        written = torch.einsum("bhk,bhkv->bhv", k, S) + torch.einsum("bhk,bhkv->bhv", k, anchor) - v
        S = a * S - b * torch.einsum("bhk,bhv->bhkv", k, written)
        rows.append(torch.einsum("bhk,bhkv->bhv", x["q"][:, t], S))
    return {"o": torch.stack(rows, 1), "S": S}


@pytest.mark.parametrize("backend", ["reference", "eager"])
@pytest.mark.parametrize("period", [1, 4])
def test_it_is_the_rule_of_hope(backend: str, period: int) -> None:
    fold = ", fold: each" if period > 1 else ""
    module = nlc.compile(loads(spec(f"{period} tokens", f"key: k, value: v{fold}, {DGD}"), "hope.yaml"), backend=backend).double()
    x, first = numbers(module, 10)
    outputs, state = module(x, first)
    leaves = {**x, "S": first["S"]}

    found = with_gradients({"o": outputs["o"], "S": state["S"]}, leaves)

    assert_equal(found, with_gradients(loop(x, first["S"], period), leaves), 1e-11)


def test_layers_erase_what_they_recall_for_their_own_input() -> None:
    """The second layer's input is gelu(W1 k) at the anchor: with a gradient of zero only the erase is left."""
    text = spec("1 token", "key: k, value: v, minimize: 0 * sum(pred * value), rule: {dgd: {rate: 0.5}}", store=MLP)
    module = nlc.compile(loads(text, "case.yaml"), backend="reference").double()
    x, first = numbers(module, 1)

    _, state = module(x, first)

    W1, W2, k = first["S.W1"], first["S.W2"], x["k"][:, 0]
    h = torch.nn.functional.gelu(torch.einsum("bchk,bck->bch", W1, k))
    for name, W, z in (("S.W1", W1, k), ("S.W2", W2, h)):
        torch.testing.assert_close(state[name], W - 0.5 * torch.einsum("bcvk,bck,bcj->bcvj", W, z, z), rtol=1e-12, atol=1e-12)


def test_the_erase_and_the_gradient_are_one_write_where_they_share_key_and_rate() -> None:
    module = nlc.compile(loads(spec("4 tokens", CASES["anchor"][1]), "case.yaml"), backend="eager")

    form = module.graph.learners["S"].linear

    assert isinstance(form, LinearForm) and len(form.writes) == 1 and form.kind == "delta"
