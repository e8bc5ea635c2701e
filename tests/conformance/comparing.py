"""What the conformance tests share: running a compiled spec with gradients, and comparing two sets of tensors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import nlc
from nlc.language.library import Library
from nlc.language.spec import Spec
from nlc.runtime.compiled import CompiledSpec

Tensors = dict[str, Tensor]

ROOT = Path(__file__).parents[2]
VECTORS = {
    "linear_attention": "linear_attention",
    "scalar_decay": "scalar_decay",
    "channel_decay": "gla",
    "delta_rule": "delta_rule",
    "gated_delta_rule": "gated_delta_rule",
    "separate_probe_key": "separate_probe_key",
}
"""The reference vectors, and the op of the library that must reproduce each."""

VALUE_TOLERANCE, GRADIENT_TOLERANCE = 2e-5, 1e-4
"""float32, relative to the tensor's max (golden/README.md)."""


def vectors_folder() -> Path:
    return Path(os.environ.get("NLC_VECTORS") or ROOT.parent / "shared" / "golden")


def read_vector(name: str) -> tuple[Tensors, dict[str, str]]:
    """The tensors and the metadata of a reference vector; skips the test (or fails it, where required) without the file."""
    path = vectors_folder() / f"{name}.safetensors"
    if not path.is_file():
        message = f"no reference vector {path}; NLC_VECTORS names their folder"
        if os.environ.get("NLC_REQUIRE_VECTORS") == "1":
            pytest.fail(message)
        pytest.skip(message)
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118  (no mapping)


def check_vector(compiled: CompiledSpec, vector: Mapping[str, Tensor], state_key: str = "S") -> None:
    """Outputs, final state and every gradient of a vector, in float32."""
    inputs = {name: vector[name].clone().requires_grad_() for name in compiled.graph.inputs}
    initial = vector["initial_state"].clone().requires_grad_()
    outputs, state = compiled(inputs, {state_key: initial})
    (output,) = outputs.values()
    final = state[state_key]
    score = (output * vector["o_cotangent"]).sum() + (final * vector["state_cotangent"]).sum()
    leaves = [*inputs.values(), initial]
    gradients = dict(zip([*inputs, "initial_state"], torch.autograd.grad(score, leaves), strict=True))
    assert {f"grad_{name}" for name in gradients} == {key for key in vector if key.startswith("grad_")}
    found = {"o": output.detach(), "final_state": final.detach()}
    assert_close(found, vector, VALUE_TOLERANCE)
    assert_close({f"grad_{name}": x for name, x in gradients.items()}, vector, GRADIENT_TOLERANCE)


def error(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest value wanted; infinite where the shape differs or a value is no number."""
    if found.shape != wanted.shape:
        return float("inf")
    if found.numel() == 0:
        return 0.0
    difference = (found.double() - wanted.double()).abs().max().item()
    scale = wanted.double().abs().max().item()
    value = difference / scale if scale > 0 else difference
    return value if value == value else float("inf")


def assert_close(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerance: float, names: Iterable[str] | None = None) -> None:
    errors = {name: error(found[name], wanted[name]) for name in (names if names is not None else found)}
    bad = {name: value for name, value in errors.items() if not value <= tolerance}
    assert not bad, f"off by {bad}; {tolerance} allowed"


def with_gradients(found: Mapping[str, Tensor], leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """These values, and the gradients of a sum in which all of them count."""
    total = torch.stack([found[name].sin().sum() for name in sorted(found)]).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    return {**found, **{f"gradient of {name}": x for name, x in zip(leaves, gradients, strict=True)}}


def assert_equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], bound: float) -> None:
    """The same names, and values within a bound relative to the largest, at least 1e-3."""
    assert ours.keys() == theirs.keys()
    for name, y in theirs.items():
        assert y.numel() == 0 or (ours[name] - y).abs().max() <= bound * y.abs().max().clamp(min=1e-3), name


def in_calls(module: CompiledSpec, inputs: Tensors, state: Tensors, ends: tuple[int, ...]) -> Tensors:
    """The output `o` and the last state of a stream in calls that end there, the rest of its tokens by `step`."""
    pieces = []
    for begin, stop in pairwise((0, *ends)):
        made, state = module({key: x[:, begin:stop] for key, x in inputs.items()}, state)
        pieces.append(made["o"])
    for t in range(ends[-1], next(iter(inputs.values())).shape[1]):
        one, state = module.step({key: x[:, t] for key, x in inputs.items()}, state)
        pieces.append(one["o"].unsqueeze(1))
    return {"o": torch.cat(pieces, 1), **state}


EVERY_FORM: tuple[dict[str, object], ...] = ({}, {"form": "chunkwise", "chunk": 4}, {"form": "recurrent"})


def numbers(module: CompiledSpec, tokens: int, rows: int = 2) -> tuple[Tensors, Tensors]:
    """Inputs, and a state at the begin of a period; what is a number takes gradients."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return (0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()

    inputs = {name: normal(rows, tokens, *(a.size for a in module.graph.flows[name].axes)) for name in module.graph.inputs}
    return inputs, {key: normal(*x.shape) if x.is_floating_point() else x for key, x in module.initial_state(rows).items()}


def results(module: CompiledSpec, inputs: Tensors, first: Tensors) -> Tensors:
    """Outputs and states of one call, and gradients in inputs and first states."""
    outputs, state = module(inputs, first)
    found = {**outputs, **{f"state {key}": x for key, x in state.items() if x.is_floating_point()}}
    leaves = {**inputs, **{f"first {key}": x for key, x in first.items() if x.is_floating_point()}}
    return with_gradients(found, leaves)


def assert_forms_agree(spec: Spec, tokens: int = 11, cuts: tuple[int, ...] = (3, 7), library: Library | None = None) -> None:
    """Every compiled form is the reference, in one call and in calls that end at `cuts`, the rest by `step`."""
    theirs = nlc.compile(spec, backend="reference", library=library).double()
    inputs, first = numbers(theirs, tokens)
    wanted = results(theirs, inputs, first)
    with torch.no_grad():
        whole, state = theirs(inputs, first)
        assert_equal(in_calls(theirs, inputs, first, cuts), {**whole, **state}, 1e-10)
    for how in EVERY_FORM:
        ours = nlc.compile(spec, backend="eager", library=library, **how).double()  # type: ignore[arg-type]
        assert_equal(results(ours, inputs, first), wanted, 1e-10)
        with torch.no_grad():
            assert_equal(in_calls(ours, inputs, first, cuts), {**whole, **state}, 1e-10)
