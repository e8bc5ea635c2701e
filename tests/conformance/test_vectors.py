"""The reference vectors (../shared/golden) in every form: outputs, final state and every gradient, float32."""

from __future__ import annotations

import pytest

import nlc
from tests.conformance.comparing import ROOT, VECTORS, check_vector, read_vector

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


def test_the_vectors_folder_is_the_one_that_is_required(monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("NLC_VECTORS", str(tmp_path))
    monkeypatch.delenv("NLC_REQUIRE_VECTORS", raising=False)
    with pytest.raises(pytest.skip.Exception):
        read_vector("delta_rule")

    monkeypatch.setenv("NLC_REQUIRE_VECTORS", "1")
    with pytest.raises(pytest.fail.Exception):
        read_vector("delta_rule")
