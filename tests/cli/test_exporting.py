"""export: binary files for devices."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from nlc.runtime.training import train
from tests.cli.running import MODEL, OP, nlc, spec_file


@pytest.mark.iree
@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "cpu:x86-64-v3", "vulkan", "vulkan:ampere", "metal", "rocm:gfx942", "cuda:sm_80", "cuda:sm_89"])
def test_export_writes_a_module_for_a_device(tmp_path: Path, target: str) -> None:
    file = tmp_path / "small.vmfb"

    ran = nlc("export", spec_file(tmp_path), "--as", "vmfb", "--target", target, "--tokens", "6", "-o", file, "--json")

    assert ran.code == 0, ran.err
    assert ran.json["bytes"] == file.stat().st_size > 1000
    assert ran.json["arguments"][0] == "input q [1, 6, 2, 4]"
    assert ran.json["results"] == ["output o", "state S"]
    assert {path.name for path in tmp_path.iterdir()} == {"small.vmfb", "small.yaml"}


@pytest.mark.iree
@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "known"),
    [("cpu:foo", "znver4"), ("vulkan:foo", "ampere"), ("rocm:gfx0", "gfx942"), ("cuda:foo", "sm_80"), ("cuda:sm_90", "sm_89")],
)
def test_export_for_an_unknown_chip_names_known_ones_and_writes_nothing(tmp_path: Path, target: str, known: str) -> None:
    ran = nlc("export", spec_file(tmp_path), "--as", "vmfb", "--target", target, "-o", tmp_path / "small.vmfb")

    name, _, chip = target.partition(":")
    assert ran.code == 3
    assert f"error[NLC706]: IREE has no {name} chip `{chip}`" in ran.err
    assert known in ran.err
    assert {path.name for path in tmp_path.iterdir()} == {"small.yaml"}


@pytest.mark.parametrize("kind", ["vmfb", "pt2"])
def test_export_does_not_replace_a_file_unless_forced(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"small.{kind}"
    file.write_text("mine", encoding="utf-8")

    ran = nlc("export", OP, "--as", kind, "-o", file)

    assert ran.code == 4
    assert "error[NLC803]" in ran.err
    assert file.read_text(encoding="utf-8") == "mine"


def test_export_to_a_folder_is_refused(tmp_path: Path) -> None:
    ran = nlc("export", OP, "--as", "vmfb", "-o", tmp_path, "--force")

    assert ran.code == 4
    assert "error[NLC801]" in ran.err


def test_export_for_an_unknown_target_lists_the_targets(tmp_path: Path) -> None:
    ran = nlc("export", OP, "--as", "vmfb", "--target", "tpu", "-o", tmp_path / "out.vmfb")

    assert ran.code == 2
    assert "there is no target `tpu`; targets: cpu, " in ran.err


@pytest.mark.skipif(find_spec("torch_mlir") is not None, reason="torch-mlir is installed")
def test_export_names_the_package_that_is_missing(tmp_path: Path) -> None:
    ran = nlc("export", OP, "--as", "vmfb", "-o", tmp_path / "out.vmfb")

    assert ran.code == 3
    assert "error[NLC705]: torch-mlir is not installed" in ran.err
    assert "pip install 'nlc[mlir]'" in ran.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--as", "pt3", "-o", "out.pt3"], "'pt3' is not one of 'vmfb', 'pt2'"),
        (["--as", "pt2", "-o", "out.zip"], "torch loads only files that end in .pt2, not `out.zip`"),
        (["--as", "pt2", "-o", "out.pt2", "--target", "cuda:sm_90"], "AOTInductor makes GPU code only on a machine with that GPU"),
        (["--as", "pt2", "-o", "out.pt2", "--run", "run", "--seed", "0"], "give one of them"),
        (["--as", "vmfb", "-o", "out.vmfb", "--run", "run"], "weights are arguments of `--as vmfb`"),
        (["--as", "vmfb", "-o", "out.vmfb", "--seed", "1"], "weights are arguments of `--as vmfb`"),
    ],
)
def test_export_refuses_options_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)

    ran = nlc("export", OP, *arguments)

    assert ran.code == 2
    assert message in " ".join(ran.err.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


@pytest.mark.inductor
def test_export_of_the_weights_of_another_spec_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(MODEL, steps=1, out=run, dims={"d": 8, "layers": 1}, batch=1, length=8, backend="eager", eval_bytes=8)

    ran = nlc("export", MODEL, "--as", "pt2", "--run", run, "-o", tmp_path / "model.pt2")
    nothing = nlc("export", MODEL, "--as", "pt2", "--run", tmp_path, "-o", tmp_path / "model.pt2")

    assert (ran.code, nothing.code) == (4, 4)
    assert "error[NLC724]" in ran.err
    assert "error[NLC720]" in nothing.err
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
