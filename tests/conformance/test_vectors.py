"""The reference vectors (../shared/golden) in every form: outputs, final state and every gradient, float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import nlc
from tests.conformance.comparing import GRADIENT_TOLERANCE, ROOT, VALUE_TOLERANCE, VECTORS, assert_close, check_vector, read_vector

FORMS = {
    "reference": {"backend": "reference"},
    "eager-recurrent": {"backend": "eager", "form": "recurrent"},
    "eager-chunkwise": {"backend": "eager", "form": "chunkwise"},
    "inductor": {"backend": "inductor"},
}
CASES = [pytest.param(form, marks=pytest.mark.inductor) if form == "inductor" else form for form in FORMS]


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("form", CASES)
def test_vector_is_reproduced(name: str, form: str) -> None:
    vector, _ = read_vector(name)
    sizes = {"H": vector["k"].shape[2], "K": vector["k"].shape[3], "V": vector["v"].shape[3]}

    compiled = nlc.compile(ROOT / "specs" / "ops" / f"{VECTORS[name]}.yaml", dims=sizes, **FORMS[form])  # type: ignore[arg-type]

    check_vector(compiled, vector)


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("chunk", [2, 8, 64, 128])
def test_vector_is_reproduced_at_every_chunk_length(name: str, chunk: int) -> None:
    vector, _ = read_vector(name)
    sizes = {"H": vector["k"].shape[2], "K": vector["k"].shape[3], "V": vector["v"].shape[3]}

    compiled = nlc.compile(ROOT / "specs" / "ops" / f"{VECTORS[name]}.yaml", dims=sizes, backend="eager", form="chunkwise", chunk=chunk)

    check_vector(compiled, vector)


@pytest.mark.parametrize("backend", ["reference", "eager", pytest.param("inductor", marks=[pytest.mark.inductor, pytest.mark.slow])])
def test_the_vector_of_a_function_of_several_tensors_is_reproduced(backend: str, tmp_path: Path) -> None:
    """The file has the gains and the rate once for all tokens, and its bias as a row below its matrix.

    The function that made it (fla-core 0.6.0, `ttt/naive.py`) learns f(x) = x + LN(x W + c), but adds the norm of a read to the
    product q W + c and not to q; the spec has the f of the paper for both, so its output is changed here.
    """
    vector, _ = read_vector("ttt_linear")
    B, T, H, K = vector["k"].shape
    text = (ROOT / "specs" / "ops" / "ttt_linear.yaml").read_text(encoding="utf-8")
    assert text.count("o: S(q)") == 1
    file = tmp_path / "read_of_the_file.yaml"
    file.write_text(text.replace("o: S(q)", "o: S(q) - q + (q @ S.W + S.bias)"), encoding="utf-8")
    compiled = nlc.compile(file, dims={"H": H, "K": K, "c": 16}, backend=backend)
    names = ("q", "k", "v", "eta", "w", "b", "initial_state", "initial_bias")
    leaves = {name: vector[name].clone().requires_grad_() for name in names}
    inputs = {name: leaves[name] for name in ("q", "k", "v")}
    inputs["eta"] = leaves["eta"].squeeze(-1).expand(B, T, H)
    inputs |= {name: leaves[name].expand(B, T, H, K) for name in ("w", "b")}
    first = {"S.W": leaves["initial_state"], "S.bias": leaves["initial_bias"].squeeze(-2)}

    outputs, state = compiled(inputs, {**compiled.initial_state(B), **first})

    final = torch.cat([state["S.W"], state["S.bias"].unsqueeze(-2)], -2)
    score = (outputs["o"] * vector["o_cotangent"]).sum() + (final * vector["state_cotangent"]).sum()
    gradients = dict(zip(leaves, torch.autograd.grad(score, list(leaves.values())), strict=True))
    assert {f"grad_{name}" for name in gradients} == {key for key in vector if key.startswith("grad_")}
    assert_close({"o": outputs["o"].detach(), "final_state": final.detach()}, vector, VALUE_TOLERANCE)
    assert_close({f"grad_{name}": x for name, x in gradients.items()}, vector, GRADIENT_TOLERANCE)


def test_the_vectors_folder_is_the_one_that_is_required(monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("NLC_VECTORS", str(tmp_path))
    monkeypatch.delenv("NLC_REQUIRE_VECTORS", raising=False)
    with pytest.raises(pytest.skip.Exception):
        read_vector("delta_rule")

    monkeypatch.setenv("NLC_REQUIRE_VECTORS", "1")
    with pytest.raises(pytest.fail.Exception):
        read_vector("delta_rule")
