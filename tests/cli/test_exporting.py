"""export: binary files for devices."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.cli.running import OP, nlc, spec_file


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


def test_export_does_not_replace_a_file_unless_forced(tmp_path: Path) -> None:
    file = tmp_path / "small.vmfb"
    file.write_text("mine", encoding="utf-8")

    ran = nlc("export", OP, "--as", "vmfb", "-o", file)

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
