"""The compiler knows no model, memory, objective or optimiser by name: with every file of the library renamed, all works."""

import random
import re
import string
from pathlib import Path

import pytest
import torch

import nlc
from nlc.language.library import Library
from tests.conformance.comparing import VECTORS, check_vector, read_vector

ROOT = Path(__file__).parents[2]
WORDS_OF_THE_FIELD = {"matrix", "vector", "scalar", "dot", "square"}
"""Stems of library files that are ordinary words, which code may use in their ordinary sense."""


def renamed_library(folder: Path) -> dict[str, str]:
    """Copy the library with every file and `name:` a random word; returns old stem -> new stem."""
    rng = random.Random(5)
    files = sorted((ROOT / "specs").glob("*/*.yaml"))
    new = {file.stem: "".join(rng.choices(string.ascii_lowercase, k=9)) for file in files}
    for file in files:
        text = file.read_text(encoding="utf-8")
        for old, word in new.items():
            text = re.sub(rf"^name: {old}$", f"name: {word}", text, flags=re.MULTILINE)
            text = re.sub(rf"(?<=/){old}(?=[,}} \n])", word, text)  # uses: {block: blocks/..}
            text = re.sub(rf"\{{{old}: ", f"{{{word}: ", text)  # {store: [..]}, {rule: {..}}
            text = re.sub(rf"minimize: {old}\b", f"minimize: {word}", text)
        path = folder / file.parent.name / f"{new[file.stem]}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return new


@pytest.mark.parametrize("backend", ["reference", "eager"])
@pytest.mark.parametrize("name", VECTORS)
def test_renamed_ops_reproduce_the_vectors(name: str, backend: str, tmp_path: Path) -> None:
    vector, _ = read_vector(name)
    word = renamed_library(tmp_path)[VECTORS[name]]

    compiled = nlc.compile(f"ops/{word}", dims={"H": 2, "K": 16, "V": 24}, backend=backend, library=Library(tmp_path))

    check_vector(compiled, vector)


def test_renamed_model_trains_to_the_same_bits(tmp_path: Path) -> None:
    words = renamed_library(tmp_path)
    dims = {"d": 16, "layers": 2}
    plain = nlc.compile("models/gated_delta_lm", dims=dims, backend="eager")
    renamed = nlc.compile(f"models/{words['gated_delta_lm']}", dims=dims, backend="eager", library=Library(tmp_path))
    tokens = torch.arange(40).view(2, 20) * 7 % 256

    losses = []
    for model in (plain, renamed):
        optimizer = None
        for _ in range(3):
            loss, optimizer = model.train_step({"tokens": tokens}, optimizer)
        losses.append(loss)

    assert torch.equal(*losses)


def test_compiler_names_no_library_spec() -> None:
    stems = {file.stem for file in (ROOT / "specs").glob("*/*.yaml")} - WORDS_OF_THE_FIELD
    word = re.compile(rf"(?<![\w/])({'|'.join(sorted(stems, key=len, reverse=True))})(?!\w)")
    found = []
    for folder in ("nlc", "passes", "backends"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            inside = file.relative_to(ROOT)
            if inside.parts[:2] in (("nlc", "passes"), ("nlc", "backends"), ("nlc", "specs")):
                continue
            code = re.sub(r'"""(?:.|\n)*?"""', "", file.read_text(encoding="utf-8"))
            found += [f"{inside}: {match.group()}" for match in word.finditer(code)]
    assert not [line for line in found if not line.startswith(("nlc/cli", "nlc/demo"))]
