"""float32 of the chunk form against a float64 loop over tokens: strong beside mild gates, correlated keys, long streams, gates of zero."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import nlc
from nlc.language.load import loads
from nlc.runtime.compiled import CompiledSpec
from tests.conformance.comparing import GRADIENT_TOLERANCE, ROOT, VALUE_TOLERANCE, Tensors, assert_close
from tests.conformance.test_closed_forms import RECURRENCES, Step, erasing, outer, read, scaled

T, LONG = 2048, 8192
DIMS = {"H": 2, "K": 16, "V": 16}
HALF_TOLERANCE = 2e-2
"""bfloat16 inputs, relative to the tensor's max."""
STRONG, MILD = -8.0, -0.001

Draw = Callable[[torch.Generator, tuple[int, ...]], Tensor]


# -- numbers ------------------------------------------------------------------------------------------------------------------


def normal(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def unit(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return F.normalize(normal(generator, shape), dim=-1)


def alike(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """Keys of length 1 whose cosine is 0.9."""
    common = unit(generator, shape[-1:])
    other = normal(generator, shape)
    return 0.9**0.5 * common + 0.1**0.5 * F.normalize(other - (other @ common).unsqueeze(-1) * common, dim=-1)


def rate(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return normal(generator, shape).sigmoid()


def one(_: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.ones(shape, dtype=torch.float64)


def mild(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return -F.softplus(normal(generator, shape) - 3)


def torn(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """Logarithms of gates: runs of 32 tokens of e^-8 in half of the channels, e^-0.001 elsewhere."""
    strong = torch.rand((shape[1] // 32 + 1, *shape[2:]), generator=generator) < 0.5
    strong = strong.repeat_interleave(32, 0)[: shape[1]].unsqueeze(0).expand(shape)
    return torch.where(strong, STRONG, MILD).double()


def closed(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """Gates, a tenth of them exactly zero."""
    return rate(generator, shape).clamp(min=0.2) * (torch.rand(shape, generator=generator) > 0.1)


USUAL: dict[str, Draw] = {
    **dict.fromkeys(("k", "p", "kt", "kap"), unit),
    **dict.fromkeys(("beta", "a", "theta", "eta", "alpha"), rate),
    **dict.fromkeys(("g", "w"), mild),
}


# -- both sides -----------------------------------------------------------------------------------------------------------------


def op(name: str) -> Path:
    return ROOT / "specs" / "ops" / f"{name}.yaml"


def drawn(module: CompiledSpec, tokens: int, special: dict[str, Draw]) -> tuple[Tensors, Tensors]:
    """Inputs and initial states, float64 numbers that float32 holds exactly."""
    generator = torch.Generator().manual_seed(5)
    draws = USUAL | special
    shapes = {name: (1, tokens, *(axis.size for axis in module.graph.flows[name].axes)) for name in module.graph.inputs}
    inputs = {name: draws.get(name, normal)(generator, shape) for name, shape in shapes.items()}
    states = {name: normal(generator, tuple(x.shape)).abs() for name, x in module.initial_state(1).items()}
    return ({name: x.float().double() for name, x in group.items()} for group in (inputs, states))  # type: ignore[return-value]


def results(run: Callable[[Tensors, Tensors], tuple[Tensor, Tensors]], inputs: Tensors, states: Tensors) -> tuple[Tensors, Tensors]:
    """Values, and gradients of a score in which every element counts."""
    leaves = {**inputs, **{f"state {name}": x for name, x in states.items()}}
    leaves = {name: x.clone().requires_grad_() for name, x in leaves.items()}
    out, last = run({name: leaves[name] for name in inputs}, {name: leaves[f"state {name}"] for name in states})
    values = {"o": out, **last}
    generator = torch.Generator().manual_seed(6)
    weights = {name: normal(generator, tuple(values[name].shape)).float() for name in sorted(values)}
    score = torch.stack([(values[name] * weight).sum() for name, weight in weights.items()]).sum()
    gradients = torch.autograd.grad(score, list(leaves.values()))
    return {name: x.detach() for name, x in values.items()}, dict(zip(leaves, gradients, strict=True))


def loop(step: Step) -> Callable[[Tensors, Tensors], tuple[Tensor, Tensors]]:
    def run(inputs: Tensors, states: Tensors) -> tuple[Tensor, Tensors]:
        now, rows = dict(states), []
        for token in zip(*(x.unbind(1) for x in inputs.values()), strict=True):
            rows.append(step(dict(zip(inputs, token, strict=True)), now))
        return torch.stack(rows, 1), now

    return run


def check(
    module: CompiledSpec,
    step: Step,
    tokens: int,
    special: dict[str, Draw] | None = None,
    dtype: torch.dtype = torch.float32,
    tolerances: tuple[float, float] = (VALUE_TOLERANCE, GRADIENT_TOLERANCE),
) -> None:
    inputs, states = drawn(module, tokens, special or {})
    inputs = {name: x.to(dtype) for name, x in inputs.items()}

    def run(inputs: Tensors, states: Tensors) -> tuple[Tensor, Tensors]:
        outputs, last = module(inputs, states)
        return outputs["o"], last

    values, gradients = results(run, inputs, {name: x.float() for name, x in states.items()})
    wanted, slopes = results(loop(step), {name: x.double() for name, x in inputs.items()}, states)
    assert_close(values, wanted, tolerances[0])
    assert_close(gradients, slopes, tolerances[1])


def chunkwise(name: str, chunk: int = 0, **dims: int) -> CompiledSpec:
    return nlc.compile(op(name), dims=DIMS | dims, backend="eager", form="chunkwise", chunk=chunk)


# -- the tests ------------------------------------------------------------------------------------------------------------------

CHANNEL_GATES = ("gla", "kda", "rwkv7")
ERRORS = ("kda", "rwkv7", "gated_delta_product", "longhorn")
NEW = ("normalised_linear_attention", "gla", "mlstm", "kda", "rwkv7", "gated_delta_product", "longhorn")


@pytest.mark.parametrize("name", NEW)
def test_float32_stays_close_over_many_tokens(name: str) -> None:
    check(chunkwise(name), RECURRENCES[name], T)


@pytest.mark.parametrize("chunk", [16, 128])
@pytest.mark.parametrize("name", CHANNEL_GATES)
def test_gates_of_e8_beside_gates_of_nearly_one(name: str, chunk: int) -> None:
    check(chunkwise(name, chunk), RECURRENCES[name], T, {"g": torn, "w": torn})


@pytest.mark.parametrize("chunk", [16, 128])
@pytest.mark.parametrize("name", ERRORS)
def test_correlated_keys_at_rate_one(name: str, chunk: int) -> None:
    special: dict[str, Draw] = {"k": alike, "kap": alike, "kt": alike, "beta": one, "a": one}

    check(chunkwise(name, chunk), RECURRENCES[name], T, special)


def test_a_long_stream_of_torn_gates_and_correlated_keys() -> None:
    check(chunkwise("kda"), RECURRENCES["kda"], LONG, {"g": torn, "k": alike, "beta": one})


def gla(x: Tensors, s: Tensors) -> Tensor:
    s["S"] = x["g"].unsqueeze(-1) * s["S"] + outer(x["k"], x["v"])
    return read(s["S"], x["q"])


def kda(x: Tensors, s: Tensors) -> Tensor:
    s["S"] = erasing(x["k"], x["beta"]) @ (x["g"].unsqueeze(-1) * s["S"]) + scaled(x["beta"], outer(x["k"], x["v"]))
    return read(s["S"], x["q"])


def rwkv7(x: Tensors, s: Tensors) -> Tensor:
    s["S"] = x["w"].unsqueeze(-1) * s["S"] - outer(x["a"] * x["kap"], read(s["S"], x["kap"])) + outer(x["kt"], x["v"])
    return read(s["S"], x["q"])


def momentum_delta(x: Tensors, s: Tensors) -> Tensor:
    gradient = outer(x["k"], read(s["S"], x["k"]) - x["v"])
    s["S.momentum"] = x["eta"].unsqueeze(-1) * s["S.momentum"] - scaled(x["theta"], gradient)
    s["S"] = x["alpha"].unsqueeze(-1) * s["S"] + s["S.momentum"]
    return read(s["S"], x["q"])


@pytest.mark.parametrize("chunk", [16, 128])
@pytest.mark.parametrize("step", [gla, kda, rwkv7, momentum_delta], ids=lambda step: step.__name__)
def test_a_gate_of_zero_clears_its_channel_and_gradients_stay_right(step: Step, chunk: int) -> None:
    text = op(step.__name__).read_text(encoding="utf-8").replace("keep: exp(g)", "keep: g").replace("keep: exp(w)", "keep: w")
    text = text.replace(" eta: [H], alpha: [H]}", " eta: [H, K], alpha: [H, K]}")
    module = nlc.compile(loads(text), dims=DIMS, backend="eager", form="chunkwise", chunk=chunk)

    check(module, step, T, dict.fromkeys(("g", "w", "eta", "alpha"), closed))


@pytest.mark.parametrize("name", [name for name in NEW if name != "mlstm"])
def test_bfloat16_inputs(name: str) -> None:
    check(chunkwise(name), RECURRENCES[name], T, dtype=torch.bfloat16, tolerances=(HALF_TOLERANCE, HALF_TOLERANCE))


def test_bfloat16_inputs_of_a_normaliser_that_does_not_cancel() -> None:
    """With signs that cancel, n . q rounded to bfloat16 falls on the other side of 1 at some tokens, and gradients jump there."""
    special: dict[str, Draw] = {name: lambda *given: normal(*given).abs() for name in ("q", "k")}

    check(chunkwise("mlstm"), RECURRENCES["mlstm"], T, special, torch.bfloat16, (HALF_TOLERANCE, HALF_TOLERANCE))
