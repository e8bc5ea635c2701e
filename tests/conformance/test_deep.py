"""Memories that are functions of several tensors against loops over the tokens, written here from the formulas of the papers.

float64; values, final states and gradients in every input and initial tensor; a stream in two calls that end inside a period.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nlc
from nlc.runtime.compiled import CompiledSpec
from tests.conformance.comparing import ROOT, assert_close

Tensors = dict[str, Tensor]
Function = Callable[[Tensor, Tensors, Tensors], Tensor]
"""(query [B, H, K], tensors, inputs of the token) -> answer [B, H, V]."""

Step = Callable[[Tensors, Tensors, Tensors, Tensors], tuple[Tensors, Tensors]]

B, T, H, CUT = 2, 11, 2, 6
SIZES = {"H": H, "K": 5, "h": 7, "c": 4}
EPS = 1e-6


def apply(z: Tensor, W: Tensor) -> Tensor:
    """z [B, H, K] and W [B, H, K, V] -> [B, H, V]."""
    return torch.einsum("bhk,bhkv->bhv", z, W)


def normed(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + EPS)


def gelu_slope(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def perceptron(z: Tensor, w: Tensors, x: Tensors) -> Tensor:
    return apply(F.gelu(apply(z, w["W1"])), w["W2"])


def perceptron_gradient(k: Tensor, w: Tensors, d: Tensor) -> Tensors:
    """Backpropagation by hand: d is the slope of the loss at the answer."""
    a = apply(k, w["W1"])
    da = torch.einsum("bhv,bhkv->bhk", d, w["W2"]) * gelu_slope(a)
    return {"W1": torch.einsum("bhk,bhv->bhkv", k, da), "W2": torch.einsum("bhk,bhv->bhkv", F.gelu(a), d)}


def by_autograd(f: Function, loss: Callable[[Tensor, Tensors], Tensor], w: Tensors, x: Tensors) -> Tensors:
    """The gradient at w of the loss of what is recalled for the key."""
    leaves = {name: tensor.clone() if tensor.requires_grad else tensor.clone().requires_grad_() for name, tensor in w.items()}
    gradients = torch.autograd.grad(loss(f(x["k"], leaves, x), x).sum(), list(leaves.values()), create_graph=True)
    return dict(zip(leaves, gradients, strict=True))


def run_loop(step: Step, f: Function, first: Tensors, inputs: Tensors) -> tuple[Tensor, Tensors]:
    """`step(w, anchor, momentum, x)` -> the new w and momentum. Read after the write."""
    w, momentum, anchor = dict(first), {name: torch.zeros_like(x) for name, x in first.items()}, dict(first)
    rows = []
    for t in range(T):
        x = {name: value[:, t] for name, value in inputs.items()}
        if t % SIZES["c"] == 0:
            anchor = w
        w, momentum = step(w, anchor, momentum, x)
        rows.append(f(x["q"], w, x))
    return torch.stack(rows, 1), {f"S.{name}": x for name, x in w.items()}


def at(gate: Tensor, w: Tensor) -> Tensor:
    """A gate [B, H] beside a tensor [B, H, ..]."""
    return gate.reshape(*gate.shape, *[1] * (w.dim() - 2))


def descend(gradient: Callable[[Tensors, Tensors], Tensors], keep: str = "") -> Step:
    """w <- alpha w - eta gradient(anchor)."""

    def step(w: Tensors, anchor: Tensors, momentum: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:
        g = gradient(anchor, x)
        return {n: (at(x[keep], w[n]) if keep else 1) * w[n] - at(x["eta"], w[n]) * g[n] for n in w}, momentum

    return step


# -- the systems --------------------------------------------------------------------------------------------------------


def ttt_linear(z: Tensor, w: Tensors, x: Tensors) -> Tensor:
    return z + normed(apply(z, w["W"]) + w["bias"]) * x["w"] + x["b"]


def ttt_mlp(z: Tensor, w: Tensors, x: Tensors) -> Tensor:
    return z + normed(apply(F.gelu(apply(z, w["W1"]) + w["b1"]), w["W2"]) + w["b2"]) * x["w"] + x["b"]


def residual(z: Tensor, w: Tensors, x: Tensors) -> Tensor:
    hidden = F.gelu(torch.einsum("bhik,bhk->bhi", w["W1"], z))
    return z + normed(torch.einsum("bhki,bhi->bhk", w["W2"], hidden)) * x["gain"]


def titans_step(w: Tensors, anchor: Tensors, momentum: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:
    """S <- eta S - theta grad |M(k) - v|^2, M <- (1 - alpha) M + S (Titans, eq. 13 and 14)."""
    g = perceptron_gradient(x["k"], anchor, 2 * (perceptron(x["k"], anchor, x) - x["v"]))
    momentum = {n: at(x["eta"], w[n]) * momentum[n] - at(x["theta"], w[n]) * g[n] for n in w}
    return {n: (1 - at(x["alpha"], w[n])) * w[n] + momentum[n] for n in w}, momentum


def yaad_gradient(w: Tensors, x: Tensors) -> Tensors:
    """The error where it is at most delta, delta times its sign beyond: the inner product with it has that gradient."""
    error = (residual(x["k"], w, x) - x["v"]).abs().detach()

    def loss(pred: Tensor, x: Tensors) -> Tensor:
        e, delta = pred - x["v"], x["delta"][..., None]
        return torch.where(error <= delta, 0.5 * e**2, delta * (e.abs() - 0.5 * delta))

    return by_autograd(residual, loss, w, x)


def cubed(pred: Tensor, x: Tensors) -> Tensor:
    return (pred - x["v"]).abs() ** 3


SYSTEMS: dict[str, tuple[Step, Function]] = {
    "ttt_linear": (
        descend(lambda w, x: by_autograd(ttt_linear, lambda pred, x: 0.5 * (pred - x["v"]) ** 2, w, x)),
        ttt_linear,
    ),
    "ttt_mlp": (descend(lambda w, x: by_autograd(ttt_mlp, lambda pred, x: (pred - x["v"]) ** 2, w, x)), ttt_mlp),
    "titans_mlp": (titans_step, perceptron),
    "dla": (descend(lambda w, x: perceptron_gradient(x["k"], w, -x["v"]), "alpha"), perceptron),
    "yaad": (descend(yaad_gradient, "alpha"), residual),
    "lp_mlp": (descend(lambda w, x: by_autograd(residual, cubed, w, x), "alpha"), residual),
}


def spec(name: str) -> CompiledSpec:
    known = {dim for dim, _ in nlc.build(ROOT / "specs" / "ops" / f"{name}.yaml").dims}
    sizes = {dim: size for dim, size in {**SIZES, "V": 3}.items() if dim in known}
    return nlc.compile(ROOT / "specs" / "ops" / f"{name}.yaml", dims=sizes, backend="reference").double()


def numbers(compiled: CompiledSpec) -> tuple[Tensors, Tensors]:
    """Random inputs [B, T, ..] and first tensors [B, ..] of the memory."""
    generator = torch.Generator().manual_seed(1)
    inputs = {}
    for name in compiled.graph.inputs:
        x = torch.randn(B, T, *(axis.size for axis in compiled.graph.flows[name].axes), generator=generator, dtype=torch.float64)
        inputs[name] = (torch.sigmoid(x) if x.dim() == 3 else x).requires_grad_()
    state = compiled.initial_state(B)
    names = [m.id for m in compiled.graph.learners.values() if m.group == "S"]
    first = {id: (0.5 * torch.randn(state[id].shape, generator=generator, dtype=torch.float64)).requires_grad_() for id in names}
    return inputs, first


def starting(compiled: CompiledSpec, first: Tensors) -> Tensors:
    state = {key: x.double() if x.is_floating_point() else x for key, x in compiled.initial_state(B).items()}
    return {**state, **first, **{f"{key}.anchor": x for key, x in first.items()}}


def score(output: Tensor, final: Tensors, leaves: Tensors) -> Tensors:
    """Gradients of a sum in which every output and state has a weight of its own."""
    generator = torch.Generator().manual_seed(2)
    parts = [output, *(final[key] for key in sorted(final))]
    total = torch.stack([(x * torch.randn(x.shape, generator=generator, dtype=torch.float64)).sum() for x in parts]).sum()
    found = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    return {f"gradient of {name}": x for name, x in zip(leaves, found, strict=True)}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_deep_memory_is_its_formula_token_by_token(name: str) -> None:
    step, f = SYSTEMS[name]
    compiled = spec(name)
    inputs, first = numbers(compiled)
    leaves = {**inputs, **first}

    outputs, state = compiled(inputs, starting(compiled, first))

    wanted, final = run_loop(step, f, {id.removeprefix("S."): x for id, x in first.items()}, inputs)
    mine = {key: state[key] for key in final}
    assert_close({"o": outputs["o"].detach(), **{k: x.detach() for k, x in mine.items()}}, {"o": wanted, **final}, 1e-12)
    assert_close(score(outputs["o"], mine, leaves), score(wanted, final, leaves), 1e-10)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_stream_of_a_deep_memory_may_be_cut_inside_a_period(name: str) -> None:
    compiled = spec(name)
    inputs, first = numbers(compiled)
    leaves = {**inputs, **first}
    whole, end = compiled(inputs, starting(compiled, first))

    head, middle = compiled({key: x[:, :CUT] for key, x in inputs.items()}, starting(compiled, first))
    tail, last = compiled({key: x[:, CUT:] for key, x in inputs.items()}, middle)

    joined = torch.cat([head["o"], tail["o"]], 1)
    assert last["position"] == T
    floats = [key for key in end if key != "position"]
    assert_close({"o": joined, **{k: last[k] for k in floats}}, {"o": whole["o"], **{k: end[k] for k in floats}}, 1e-14)
    ours, theirs = ({k: state[k] for k in floats} for state in (last, end))
    assert_close(score(joined, ours, leaves), score(whole["o"], theirs, leaves), 1e-12)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_learned_first_state_is_a_parameter_of_each_tensor(name: str) -> None:
    compiled = spec(name)
    _, first = numbers(compiled)

    learned = {key.removesuffix(".init"): p for key, p in compiled.named_parameters()}

    assert set(learned) == (set() if name == "ttt_linear" else set(first))
    for id, p in learned.items():
        assert (p.std() > 0) == (p.dim() == 3), f"{id}: matrices are drawn, vectors are zeros"
        assert torch.equal(compiled.initial_state(B)[id], p.expand(B, *p.shape))
