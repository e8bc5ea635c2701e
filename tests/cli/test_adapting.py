"""adapt through the command line; what it does is tested in tests/runtime."""

from pathlib import Path

import pytest

from tests.cli.running import Ran, nlc
from tests.conformance import llama

SPEC = "models/llama_lm"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    llama.write(tmp_path / "checkpoint", llama.weights())
    return tmp_path


def adapt(folder: Path, *more: str, names: str = "llama") -> Ran:
    return nlc("adapt", folder / "checkpoint", "--spec", SPEC, "--map", names, "--out", folder / "run", *more)


def test_adapt_leaves_a_run_and_says_what_it_set(folder: Path) -> None:
    ran = adapt(folder)

    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[0].startswith(f"{folder / 'run'}: 21 parameters of ")
    assert "layers=2, G=2, R=3, K=6" in ran.out
    assert nlc("sample", folder / "run", "--tokens", "2").code == 0


def test_adapt_prints_json(folder: Path) -> None:
    ran = adapt(folder, "--json")

    assert ran.code == 0, ran.err
    assert ran.json["set"]["theta"] == 500.0
    assert ran.json["tensors"]["h.1.mlp.up"] == "model.layers.1.mlp.up_proj.weight"
    assert (ran.json["schema_version"], ran.json["fresh"]) == (1, 0)


def test_a_dim_that_is_set_replaces_that_of_the_config(folder: Path) -> None:
    ran = adapt(folder, "--set", "layers=1")

    assert ran.code == 4
    assert "error[NLC741]: `model.layers.1." in ran.err
    assert not (folder / "run").exists()


def test_a_map_is_a_file_or_a_name_of_the_library(folder: Path) -> None:
    (folder / "broken.yaml").write_text("nlc: 1\nname: x\ntensors: {a: 3}\n", encoding="utf-8")

    unknown, broken = adapt(folder, names="lama"), adapt(folder, names=str(folder / "broken.yaml"))

    assert (unknown.code, broken.code) == (4, 1)
    assert "did you mean `llama`?" in unknown.err
    assert "broken.yaml:3:14" in broken.err
    assert sorted(path.name for path in folder.iterdir()) == ["broken.yaml", "checkpoint"]


def test_what_is_needed_is_asked_for(folder: Path) -> None:
    ran = nlc("adapt", folder / "checkpoint", "--spec", SPEC, "--out", folder / "run")

    assert ran.code == 2
    assert "--map" in ran.err


def test_maps_are_no_specs() -> None:
    assert not any(line.startswith("maps/") for line in nlc("list").out.splitlines())
    assert nlc("list", "maps").code == 2
