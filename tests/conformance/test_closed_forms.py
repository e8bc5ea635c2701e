"""Every op of the library against its published recurrence, written out here token by token, with no code of the compiler inside."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import nlc
from nlc.runtime.compiled import CompiledSpec
from tests.conformance.comparing import ROOT, Tensors, assert_close
from tests.conformance.test_deep import SYSTEMS as DEEP

B, T, CUT = 2, 37, 21
SIZES = {"H": 2, "K": 6, "V": 5, "R": 3, "c": 8}
TOLERANCE = 1e-10
"""float64, relative to the tensor's max."""

Step = Callable[[Tensors, Tensors], Tensor]
"""(what a token brings [B, ..], the states, changed in place) -> the output of the token."""


# -- the recurrences: S [B, H, K, V] is the transpose of the papers' M where those map by M k ---------------------------------


def outer(k: Tensor, v: Tensor) -> Tensor:
    return k.unsqueeze(-1) * v.unsqueeze(-2)


def read(S: Tensor, q: Tensor) -> Tensor:
    return (S * q.unsqueeze(-1)).sum(-2)


def scaled(a: Tensor, S: Tensor) -> Tensor:
    return a[..., None, None] * S


def erasing(k: Tensor, beta: Tensor, probe: Tensor | None = None) -> Tensor:
    """I - beta k p^T, with the probe k unless another is given."""
    return torch.eye(k.shape[-1], dtype=k.dtype) - scaled(beta, outer(k, k if probe is None else probe))


def linear_attention(x: Tensors, s: Tensors) -> Tensor:
    s["S"] = s["S"] + outer(x["k"], x["v"])
    return read(s["S"], x["q"])


def ada_transformer(x: Tensors, s: Tensors) -> Tensor:
    """y = x W, W a sum that begins with a learned matrix."""
    s["W"] = s["W"] + outer(x["k"], x["v"])
    return read(s["W"], x["x"])


def normalised_linear_attention(x: Tensors, s: Tensors) -> Tensor:
    q, k = (torch.where(y > 0, y + 1, y.exp()) for y in (x["q"], x["k"]))
    s["S"] = s["S"] + outer(k, x["v"])
    s["n"] = s["n"] + k
    return read(s["S"], q) / (s["n"] * q).sum(-1, keepdim=True)


def scalar_decay(x: Tensors, s: Tensors) -> Tensor:
    s["S"] = scaled(x["g"].exp(), s["S"]) + outer(x["k"], x["v"])
    return read(s["S"], x["q"])


def retnet(x: Tensors, s: Tensors) -> Tensor:
    s["S"] = scaled(1 - 2 ** x["octave.W"], s["S"]) + outer(x["k"], x["v"])
    return read(s["S"], x["q"])


def gla(x: Tensors, s: Tensors) -> Tensor:
    s["S"] = x["g"].exp().unsqueeze(-1) * s["S"] + outer(x["k"], x["v"])
    return read(s["S"], x["q"])


def mlstm(x: Tensors, s: Tensors) -> Tensor:
    i, f = x["i"].exp(), 1 / (1 + (-x["f"]).exp())
    s["S"] = scaled(f, s["S"]) + scaled(i, outer(x["k"], x["v"]))
    s["n"] = f.unsqueeze(-1) * s["n"] + i.unsqueeze(-1) * x["k"]
    return read(s["S"], x["q"]) / (s["n"] * x["q"]).sum(-1, keepdim=True).abs().clamp(min=1)


def delta_rule(x: Tensors, s: Tensors) -> Tensor:
    s["S"] = erasing(x["k"], x["beta"]) @ s["S"] + scaled(x["beta"], outer(x["k"], x["v"]))
    return read(s["S"], x["q"])


def gated_delta_rule(x: Tensors, s: Tensors) -> Tensor:
    s["S"] = erasing(x["k"], x["beta"]) @ scaled(x["g"].exp(), s["S"]) + scaled(x["beta"], outer(x["k"], x["v"]))
    return read(s["S"], x["q"])


def kda(x: Tensors, s: Tensors) -> Tensor:
    s["S"] = erasing(x["k"], x["beta"]) @ torch.diag_embed(x["g"].exp()) @ s["S"] + scaled(x["beta"], outer(x["k"], x["v"]))
    return read(s["S"], x["q"])


def separate_probe_key(x: Tensors, s: Tensors) -> Tensor:
    decayed = scaled(x["g"].exp(), s["S"])
    s["S"] = erasing(x["k"], x["beta"], x["p"]) @ decayed + scaled(x["beta"], outer(x["k"], x["v"]))
    return read(s["S"], x["q"])


def rwkv7(x: Tensors, s: Tensors) -> Tensor:
    transition = torch.diag_embed(x["w"].exp()) - outer(x["a"] * x["kap"], x["kap"])
    s["S"] = transition @ s["S"] + outer(x["kt"], x["v"])
    return read(s["S"], x["q"])


def gated_delta_product(x: Tensors, s: Tensors) -> Tensor:
    S = scaled(x["g"].exp(), s["S"])
    for k, v, beta in zip(*(x[name].unbind(1) for name in ("k", "v", "beta")), strict=True):
        S = erasing(k, beta) @ S + scaled(beta, outer(k, v))
    s["S"] = S
    return read(S, x["q"])


def longhorn(x: Tensors, s: Tensors) -> Tensor:
    """argmin over M of 1/2 |M^T k - v|^2 + 1/(2 beta) |M - S|^2, by its normal equations."""
    k, one = x["k"], torch.eye(x["k"].shape[-1], dtype=x["k"].dtype)
    inverse = torch.linalg.inv(scaled(1 / x["beta"], one) + outer(k, k))
    s["S"] = inverse @ (scaled(1 / x["beta"], s["S"]) + outer(k, x["v"]))
    return read(s["S"], x["q"])


def momentum_delta(x: Tensors, s: Tensors) -> Tensor:
    gradient = outer(x["k"], read(s["S"], x["k"]) - x["v"])
    s["S.momentum"] = scaled(x["eta"], s["S.momentum"]) - scaled(x["theta"], gradient)
    s["S"] = scaled(x["alpha"], s["S"]) + s["S.momentum"]
    return read(s["S"], x["q"])


def softmax_attention(x: Tensors, s: Tensors) -> Tensor:
    s["S.keys"] = torch.cat([s["S.keys"], x["k"][:, None]], 1)
    s["S.values"] = torch.cat([s["S.values"], x["v"][:, None]], 1)
    weights = ((s["S.keys"] * x["q"][:, None]).sum(-1, keepdim=True) / SIZES["K"] ** 0.5).exp()
    return (weights * s["S.values"]).sum(1) / weights.sum(1)


def sliding_window_attention(x: Tensors, s: Tensors) -> Tensor:
    out = softmax_attention(x, s)
    first = max(0, s["S.keys"].shape[1] - SIZES["c"] + 1)
    s["S.keys"], s["S.values"] = s["S.keys"][:, first:], s["S.values"][:, first:]
    return out


def mesa(x: Tensors, s: Tensors) -> Tensor:
    """S(x) is P^T x: where P begins as a sum of k k^T it stays one."""
    for name, value in (("P", x["k"]), ("R", x["v"])):
        s[name] = scaled(x["g"].exp(), s[name]) + scaled(x["beta"], outer(x["k"], value))
    return read(s["R"], torch.linalg.solve(s["P"].mT + torch.diag_embed(x["lam"]), x["q"]))


def oja(x: Tensors, s: Tensors) -> Tensor:
    v = x["v"]
    s["S"] = scaled(x["g"].exp(), s["S"]) + scaled(x["beta"], outer(x["k"], v) - s["S"] @ outer(v, v))
    return read(s["S"], x["q"])


def omega(x: Tensors, s: Tensors) -> Tensor:
    for part, name in (("keys", "k"), ("values", "v"), ("weights", "gamma")):
        s[f"S.{part}"] = torch.cat([s[f"S.{part}"], x[name][:, None]], 1)
    W, step = s["S"], torch.zeros_like(s["S"])
    for k, v, gamma in zip(*(s[f"S.{part}"].unbind(1) for part in ("keys", "values", "weights")), strict=True):
        step = step + scaled(gamma, outer(k, v - read(W, k)))
    s["S"] = scaled(x["alpha"], W) + scaled(x["eta"], step)
    for part in ("keys", "values", "weights"):
        s[f"S.{part}"] = s[f"S.{part}"][:, 1:]
    return read(s["S"], x["q"])


RECURRENCES: dict[str, Step] = {
    step.__name__: step
    for step in (
        linear_attention,
        ada_transformer,
        normalised_linear_attention,
        scalar_decay,
        retnet,
        gla,
        mlstm,
        delta_rule,
        gated_delta_rule,
        kda,
        separate_probe_key,
        rwkv7,
        gated_delta_product,
        longhorn,
        momentum_delta,
        mesa,
        oja,
        omega,
        softmax_attention,
        sliding_window_attention,
    )
}
FORMS = {
    "reference": {"backend": "reference"},
    "recurrent": {"backend": "eager", "form": "recurrent"},
    "chunkwise": {"backend": "eager", "form": "chunkwise"},
    "chunkwise 16": {"backend": "eager", "form": "chunkwise", "chunk": 16},
}
CASES = [*itertools.product(RECURRENCES, FORMS)]


# -- numbers ------------------------------------------------------------------------------------------------------------------


def drawn(module: CompiledSpec) -> tuple[Tensors, Tensors, Tensors]:
    """Inputs, states, parameters: keys of length 1, rates and plain gates in (0, 1), logarithms of gates below 0."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = {}
    for name in module.graph.inputs:
        x = normal(B, T, *(axis.size for axis in module.graph.flows[name].axes))
        if name in ("k", "p", "kt", "kap"):
            x = F.normalize(x, dim=-1)
        elif name in ("beta", "a", "theta", "eta", "alpha", "lam", "gamma"):
            x = x.sigmoid()
        elif name in ("g", "w"):
            x = -F.softplus(x)
        elif name == "v":
            x = 0.5 * x
        inputs[name] = x
    states = {name: normal(*x.shape).abs() for name, x in module.initial_state(B).items()}
    parameters = {name: (-5 - torch.arange(x.numel(), dtype=torch.float64)).reshape(x.shape) for name, x in module.named_parameters()}
    return inputs, states, parameters


def leaves(*groups: Tensors) -> list[Tensors]:
    return [{name: x.clone().requires_grad_() for name, x in group.items()} for group in groups]


def with_gradients(outputs: Tensor, states: Tensors, *groups: Tensors) -> Tensors:
    """The values, and the gradients of one score in which every element counts."""
    values = {"o": outputs, **states}
    generator = torch.Generator().manual_seed(4)
    weights = {name: torch.randn(values[name].shape, generator=generator, dtype=torch.float64) for name in sorted(values)}
    score = torch.stack([(values[name] * weight).sum() for name, weight in weights.items()]).sum()
    named = {f"grad {name}": x for group in groups for name, x in group.items() if x.numel()}
    gradients = torch.autograd.grad(score, list(named.values()), materialize_grads=True)
    return {**{name: x.detach() for name, x in values.items()}, **dict(zip(named, gradients, strict=True))}


def compiled(name: str, form: str) -> CompiledSpec:
    spec = ROOT / "specs" / "ops" / f"{name}.yaml"
    dims = {dim: size for dim, size in SIZES.items() if dim in dict(nlc.build(spec).dims)}
    return nlc.compile(spec, dims=dims, **FORMS[form]).double()  # type: ignore[arg-type]


@cache
def wanted(name: str) -> Tensors:
    inputs, start, parameters = leaves(*drawn(compiled(name, "reference")))
    states, rows = dict(start), []
    for t in range(T):
        rows.append(RECURRENCES[name]({**{key: x[:, t] for key, x in inputs.items()}, **parameters}, states))
    return with_gradients(torch.stack(rows, 1), states, inputs, start, parameters)


def found(name: str, form: str, ends: tuple[int, ...]) -> Tensors:
    """By calls that end at these tokens."""
    module = compiled(name, form)
    inputs, start, parameters = leaves(*drawn(module))
    with torch.no_grad():
        for key, x in module.named_parameters():
            x.copy_(parameters[key])
    states, rows = dict(start), []
    for begin, end in itertools.pairwise((0, *ends)):
        outputs, states = module({key: x[:, begin:end] for key, x in inputs.items()}, states)
        rows.append(outputs["o"])
    return with_gradients(torch.cat(rows, 1), states, inputs, start, dict(module.named_parameters()))


@pytest.mark.parametrize(("name", "form"), CASES)
def test_op_is_its_published_recurrence(name: str, form: str) -> None:
    expected = wanted(name)

    assert_close(found(name, form, (T,)), expected, TOLERANCE, names=expected)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_a_stream_in_two_calls_is_one_stream(name: str, form: str) -> None:
    expected = wanted(name)

    assert_close(found(name, form, (CUT, T)), expected, TOLERANCE, names=expected)


@pytest.mark.parametrize("form", FORMS)
def test_a_new_stream_begins_with_the_learned_matrix(form: str) -> None:
    module = compiled("ada_transformer", form)
    inputs, _, _ = drawn(module)
    (W,) = module.parameters()

    def gradient(o: Tensor) -> Tensor:
        return torch.autograd.grad(o.sin().sum(), W)[0]

    states, rows = {"W": W.expand(B, *W.shape)}, []
    for t in range(T):
        rows.append(ada_transformer({key: x[:, t] for key, x in inputs.items()}, states))
    expected, made = torch.stack(rows, 1), module(inputs)[0]["o"]

    assert_close({"o": made, "grad": gradient(made)}, {"o": expected, "grad": gradient(expected)}, TOLERANCE)


def test_every_op_of_the_library_has_its_recurrence_here() -> None:
    """Functions of several tensors have theirs in test_deep.py."""
    assert set(RECURRENCES) | set(DEEP) == {file.stem for file in (ROOT / "specs" / "ops").glob("*.yaml")}
