"""Learners that are solved exactly, against the reference and against the formula: values, gradients, streams, decoding."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nlc
from nlc.diagnostics import BackendError
from nlc.language.load import loads
from nlc.runtime.compiled import CompiledSpec

T = 11
WEIGHTS = {
    "default": ("", 0.0),
    "plain": (', weight: "exp(dot(query, key))"', 1.0),
    "scaled": (', weight: "exp(K^-0.5 * dot(query, key))"', 0.5),
    "scaled from the right": (', weight: "exp(dot(key, query) / 4)"', 0.25),
    "negative": (', weight: "exp(-(2 * dot(query, key)))"', -2.0),
}


def spec(over: str, weight: str, per: str = "[H]", context: str = "key: k, value: v") -> str:
    axes = per.strip("[]")
    before = f"{axes}, " if axes else ""
    return f"""nlc: 1
name: case
dims: {{H: 2, G: 3, K: 4, V: 3, c: 4}}
inputs: {{q: [{before}K], k: [{before}K], v: [{before}V]}}
levels:
  memory:
    every: 1 token
    learners:
      S: {{store: {{vector: [V]}}, per: {per}, learn: {{{context}, solve: exact, over: {over}{weight}}}}}
outputs: {{o: S(q), twice: S(0.5 * q)}}
"""


def compiled(text: str, backend: str) -> CompiledSpec:
    return nlc.compile(loads(text, "case.yaml"), backend=backend)


def inputs(module: CompiledSpec, tokens: int = T) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {name: [axis.size for axis in module.graph.flows[name].axes] for name in module.graph.inputs}
    drawn = {name: torch.randn(2, tokens, *shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return {name: x.requires_grad_() for name, x in drawn.items()}


def assert_same(module: CompiledSpec, reference: CompiledSpec) -> None:
    """Outputs, states, gradients; a stream in three pieces; token by token."""
    given = inputs(module)
    (ours, state), (theirs, end) = module(given), reference(given)
    assert state.keys() == end.keys()
    for left, right in [*((ours[name], theirs[name]) for name in theirs), *((state[key], end[key]) for key in end)]:
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    sums = [sum(x.sin().sum() for x in outputs.values()) for outputs in (ours, theirs)]
    grads = [torch.autograd.grad(total, list(given.values()), materialize_grads=True) for total in sums]
    for left, right in zip(*grads, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-12)
    pieces, state = [], None
    for begin, stop in ((0, 3), (3, 4), (4, 9)):
        made, state = module({name: x[:, begin:stop] for name, x in given.items()}, state)
        pieces.append(made)
    for t in range(9, T):
        assert state is not None
        one, state = module.step({name: x[:, t] for name, x in given.items()}, state)
        pieces.append({name: x.unsqueeze(1) for name, x in one.items()})
    for name, whole in theirs.items():
        torch.testing.assert_close(torch.cat([piece[name] for piece in pieces], 1), whole, rtol=1e-12, atol=1e-12)
    assert state is not None
    for key in end:
        torch.testing.assert_close(state[key], end[key], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("over", ["all", "1 token", "c tokens", "64 tokens"])
@pytest.mark.parametrize("weight", [name for name in WEIGHTS if name != "default"])
@pytest.mark.parametrize("per", ["[]", "[H]", "[H, G]"])
def test_generated_code_agrees_with_the_reference(over: str, weight: str, per: str) -> None:
    text = spec(over, WEIGHTS[weight][0], per)

    assert_same(compiled(text, "eager"), compiled(text, "reference"))


SEVERAL = """nlc: 1
name: several
dims: {H: 2, G: 1, K: 4, V: 3, P: 5, R: 2, c: 4}
inputs: {q: [H, K], k: [K, H], v: [H, V], r: [R, H, K], u: [V]}
levels:
  fixed:
    learners:
      PK: {store: {params: {W: [P, K]}, call: z -> W}, per: [H], init: learned(normal(0.5))}
      PV: {store: {params: {W: [P, V]}, call: z -> W}, init: learned(normal(0.5))}
  memory:
    every: 1 token
    learners:
      S:
        store: {vector: [V]}
        per: [H]
        learn:
          - {key: k, value: v, solve: exact, over: all, weight: "exp(K^-0.5 * dot(query, key))"}
          - {key: tanh(k), value: u, over: c tokens, weight: "exp(K^-0.5 * dot(query, key))"}
          - {key: r, value: r_v, over: all, fold: {R: sum}, weight: "exp(K^-0.5 * dot(query, key))"}
          - {key: PK(), value: PV(), fold: {P: sum}, weight: "exp(K^-0.5 * dot(query, key))"}
flows: {r_v: "linear(r, [R, H, V])"}
outputs: {o: S(q), twice: S(0.5 * q)}
"""
SEGMENTS = SEVERAL.replace("over: c tokens", "over: all").replace("        learn:", "        reset: {every: c tokens}\n        learn:")
ALONE = spec("all", WEIGHTS["scaled"][0]).replace("per: [H]", "per: [H], reset: {every: c tokens}")
CONTEXTS = {
    "several": SEVERAL,
    "segments": SEGMENTS,
    "one in segments": ALONE,
    "segments of one token": ALONE.replace("c: 4", "c: 1"),
    "windows in segments": SEVERAL.replace("        learn:", "        reset: {every: 5 tokens}\n        learn:"),
    "only windows in segments": SEVERAL.replace("over: all", "over: 3 tokens").replace(
        "        learn:", "        reset: {every: 5 tokens}\n        learn:"
    ),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_several_contexts_and_segments_agree_with_the_reference(name: str) -> None:
    assert_same(compiled(CONTEXTS[name], "eager").double(), compiled(CONTEXTS[name], "reference").double())


@pytest.mark.parametrize("cut", range(1, T))
def test_a_stream_may_be_cut_anywhere_in_a_segment(cut: int) -> None:
    module = compiled(SEGMENTS, "eager").double()
    given = {name: x.detach() for name, x in inputs(module).items()}
    first, state = module({name: x[:, :cut] for name, x in given.items()})
    second, _ = module({name: x[:, cut:] for name, x in given.items()}, state)

    whole = compiled(SEGMENTS, "reference").double()(given)[0]["o"]
    torch.testing.assert_close(torch.cat([first["o"], second["o"]], 1), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.inductor
def test_compiled_segments_agree_with_the_reference() -> None:
    module, reference = compiled(ALONE, "inductor"), compiled(ALONE, "reference")
    given = {name: x.detach() for name, x in inputs(module).items()}
    first, state = module({name: x[:, :8] for name, x in given.items()})
    second, _ = module({name: x[:, 8:] for name, x in given.items()}, state)

    torch.testing.assert_close(torch.cat([first["o"], second["o"]], 1), reference(given)[0]["o"], rtol=1e-12, atol=1e-12)


def test_several_contexts_are_one_softmax_over_a_segment() -> None:
    module = compiled(SEGMENTS, "reference").double()
    p, x = dict(module.named_parameters()), inputs(module)
    r_v = torch.einsum("btrhk,rhkgwv->btgwv", x["r"], p["r_v.linear.W"])
    token = 9  # of the segment that begins at 8
    own = slice(8, token + 1)
    k = x["k"].transpose(-1, -2)
    fixed = p["PK.W"].transpose(0, 1).expand(2, -1, -1, -1)
    keys = torch.cat([k[:, own], k[:, own].tanh(), x["r"][:, own].flatten(1, 2), fixed], 1)
    u = x["u"].unsqueeze(2).expand(-1, -1, 2, -1)
    persistent = p["PV.W"][:, None].expand(2, -1, 2, -1)
    values = torch.cat([x["v"][:, own], u[:, own], r_v[:, own].flatten(1, 2), persistent], 1)

    weights = (torch.einsum("bhk,bnhk->bnh", x["q"][:, token], keys) / 2).softmax(1)
    expected = torch.einsum("bnh,bnhv->bhv", weights, values)

    torch.testing.assert_close(module(x)[0]["o"][:, token], expected, rtol=1e-12, atol=1e-12)


def test_segments_leave_no_mask_between_them() -> None:
    """A call of whole segments forms scores within them only."""
    module = compiled(ALONE, "eager")
    shapes: list[tuple[int, ...]] = []

    def noted(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        shapes.append((q.shape[-2], k.shape[-2]))
        return attention(q, k, v, **options)

    attention = torch.nn.functional.scaled_dot_product_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
        module(inputs(module))

    assert set(shapes) == {(4, 4)}


@pytest.mark.inductor
def test_compiled_code_agrees_with_the_reference() -> None:
    text = spec("c tokens", WEIGHTS["scaled"][0])
    given = inputs(module := compiled(text, "inductor"))
    outputs = [each(given)[0] for each in (module, compiled(text, "reference"))]
    grads = [torch.autograd.grad(sum(x.sin().sum() for x in each.values()), list(given.values())) for each in outputs]

    for left, right in zip([*outputs[0].values(), *grads[0]], [*outputs[1].values(), *grads[1]], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-12)


@pytest.mark.inductor
def test_compiled_decoding_compiles_a_few_times_only() -> None:
    module = compiled(spec("all", WEIGHTS["scaled"][0]), "inductor")
    given = {name: x.detach() for name, x in inputs(module, 30).items()}
    torch._dynamo.utils.counters.clear()
    _, state = module({name: x[:, :5] for name, x in given.items()})
    for t in range(5, 30):
        _, state = module.step({name: x[:, t] for name, x in given.items()}, state)

    assert state["S.keys"].shape[1] == 30
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4


@pytest.mark.parametrize(("over", "weight"), list(product(["all", "c tokens"], WEIGHTS)))
def test_reference_is_the_weighted_mean(over: str, weight: str) -> None:
    text, scale = WEIGHTS[weight]
    given = inputs(module := compiled(spec(over, text), "reference"))
    age = torch.arange(T).unsqueeze(1) - torch.arange(T)
    seen = (age >= 0) & (age < (4 if over == "c tokens" else T))

    scores = torch.einsum("bthk,bshk->bhts", given["q"], given["k"]) * scale
    expected = torch.einsum("bhts,bshv->bthv", scores.masked_fill(~seen, float("-inf")).softmax(-1), given["v"])

    torch.testing.assert_close(module(given)[0]["o"], expected, rtol=1e-12, atol=1e-12)


def test_keys_and_values_may_be_flows_and_values_may_lack_axes() -> None:
    text = spec("all", WEIGHTS["scaled"][0], context="key: l2norm(k), value: u")
    text = text.replace("v: [H, V]}", "v: [V]}\nflows: {u: tanh(v)}")

    assert_same(compiled(text, "eager"), compiled(text, "reference"))


def test_a_weight_of_another_form_is_for_the_reference_only() -> None:
    text = spec("all", ', weight: "exp(-sum((query - key)^2))"').replace("sum((query - key)^2)", "dot(query - key, query - key)")

    assert compiled(text, "reference")(inputs(compiled(text, "reference")))[0]["o"].isfinite().all()
    with pytest.raises(BackendError, match="not of the form exp") as caught:
        compiled(text, "eager")
    assert caught.value.exit_code == 3
    assert "case.yaml:" in str(caught.value)


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_a_context_of_another_shape_is_nlc702(backend: str) -> None:
    module = compiled(spec("all", ""), backend) if backend == "reference" else compiled(spec("all", WEIGHTS["plain"][0]), backend)
    state = {"S.keys": torch.zeros(2, 5, 2, 9), "S.values": torch.zeros(2, 5, 2, 3)}

    with pytest.raises(nlc.DataError, match=r"the state `S.keys` has shape \[2, 5, 2, 9\]; \[2, samples, 2, 4\] is needed"):
        module({name: x.float() for name, x in inputs(module).items()}, state)


def test_model_learns_and_decodes(tmp_path: Path) -> None:
    model = nlc.compile("models/transformer_lm", dims={"d": 32, "layers": 2, "vocab": 16}, backend="eager")
    tokens = torch.arange(48).remainder(7).expand(2, -1)
    losses, optimizer = [], None
    for _ in range(12):
        loss, optimizer = model.train_step({"tokens": tokens}, optimizer)
        losses.append(float(loss))

    outputs, state = model({"tokens": tokens[:, :20]})
    following, state = model.step({"tokens": tokens[:, 20]}, state)
    whole, _ = model({"tokens": tokens[:, :21]})

    assert losses[-1] < 0.5 * losses[0]
    torch.testing.assert_close(following["logits"], whole["logits"][:, -1], rtol=1e-4, atol=1e-5)
    assert outputs["logits"].shape == (2, 20, 16)
