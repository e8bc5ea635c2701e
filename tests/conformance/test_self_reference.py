"""A matrix that writes itself (`blocks/srwm`) against a loop written by hand: values, gradients, streams; float64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nlc
from nlc.language import loads
from nlc.runtime.compiled import CompiledSpec
from tests.conformance.comparing import assert_close, assert_equal, with_gradients

D, B, T = 5, 2, 13


def made(backend: str, every: str = "1 token", **options: Any) -> CompiledSpec:
    text = (Path(nlc.specs.__path__[0]) / "blocks/srwm.yaml").read_text(encoding="utf-8")
    if every != "1 token":  # the chunk form of a TTT layer: keys, gradients and answers of a period stand at its start
        text = (
            text.replace("every: 1 token", f"every: {every}")
            .replace("read: before", "read: start")
            .replace("rate: b", "rate: b, fold: each")
        )
    return nlc.compile(loads(text), dims={"d": D}, backend=backend, **options).double()


def inputs(seed: int = 0) -> dict[str, Tensor]:
    x = torch.randn(B, T, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return {"x": x.requires_grad_()}


def by_hand(x: Tensor, W: Tensor, period: int = 1) -> dict[str, Tensor]:
    """W [d, 3 d + 1] in the order of the store: W^T x is the answer."""
    matrix, found = W.expand(B, -1, -1), []
    for t in range(T):
        if t % period == 0:
            anchor = matrix
        y, k, q, b = torch.einsum("bio,bi->bo", anchor, x[:, t]).split([D, D, D, 1], 1)
        k, q = torch.softmax(k, 1), torch.softmax(q, 1)
        difference = torch.einsum("bio,bi->bo", anchor, q) - torch.einsum("bio,bi->bo", anchor, k)
        matrix = matrix + torch.sigmoid(b)[:, :, None] * torch.einsum("bi,bo->bio", k, difference)
        found.append(y)
    return {"y": torch.stack(found, 1), "W": matrix}


def results(compiled: CompiledSpec, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    outputs, state = compiled(dict(given))
    return with_gradients({"y": outputs["y"], "W": state["W"]}, {**given, **dict(compiled.named_parameters())})


@pytest.mark.parametrize("backend", ["reference", "eager"])
@pytest.mark.parametrize("period", [1, 4])
def test_is_the_loop_by_hand(period: int, backend: str) -> None:
    compiled, given = made(backend, f"{period} token{'s' if period > 1 else ''}"), inputs()
    W = dict(compiled.named_parameters())["W.init"]

    wanted = with_gradients(by_hand(given["x"], W, period), {**given, "W.init": W})

    assert_equal(results(compiled, given), wanted, 1e-12)


@pytest.mark.inductor
def test_compiled_code_is_the_reference() -> None:
    ours, theirs, given = made("inductor"), made("reference"), inputs()

    assert_close(results(ours, given), results(theirs, given), 1e-10)


def test_a_stream_may_be_cut_anywhere() -> None:
    compiled, x = made("eager"), inputs()["x"].detach()
    with torch.no_grad():
        whole, end = compiled({"x": x})
        first, state = compiled({"x": x[:, :6]})
        second, state = compiled({"x": x[:, 6:-1]}, state)
        last, state = compiled.step({"x": x[:, -1]}, state)

    pieces = torch.cat([first["y"], second["y"], last["y"][:, None]], 1)
    torch.testing.assert_close(pieces, whole["y"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state["W"], end["W"], rtol=1e-12, atol=1e-12)
