"""compile and emit: the files and forms of a spec."""

import hashlib
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from nlc.language.library import Library
from nlc.passmanager import DEFAULT
from tests.cli.running import MODEL, OP, SMALL, WRONG, nlc, spec_file


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_compile_writes_every_stage_and_a_manifest(tmp_path: Path) -> None:
    out = tmp_path / "out"

    ran = nlc("compile", spec_file(tmp_path), "-o", out, "--backend", "eager")

    assert ran.code == 0, ran.err
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert files_in(out) == {"manifest.json", *(entry["file"] for entry in manifest["files"])}
    assert {"graph.svg", "graph.json", "00-input.txt", "program.txt", "generated.py"} < files_in(out)
    assert manifest["inductor_skipped"] == "the backend is eager"
    for entry in manifest["files"]:
        assert hashlib.sha256((out / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]


def test_compile_numbers_the_dumps_and_marks_unchanged_ones(tmp_path: Path) -> None:
    nlc("compile", spec_file(tmp_path), "-o", tmp_path / "out", "--backend", "eager")

    dumps = sorted(name for name in files_in(tmp_path / "out") if name[0].isdigit())
    assert [name[3:].partition(".")[0] for name in dumps] == ["input", *DEFAULT]
    assert {Path(name).suffix for name in dumps} == {".txt", ".same"}
    same = next(name for name in dumps if name.endswith(".same"))
    assert (tmp_path / "out" / same).read_text(encoding="utf-8").startswith("unchanged, see ")


def test_compile_of_the_same_spec_writes_the_same_bytes(tmp_path: Path) -> None:
    spec = spec_file(tmp_path)
    for name in ("one", "two"):
        assert nlc("compile", spec, "-o", tmp_path / name, "--backend", "eager").code == 0

    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files_in(tmp_path / "one"))


def test_compile_replaces_its_own_output_and_removes_what_is_no_longer_made(tmp_path: Path) -> None:
    spec, out = spec_file(tmp_path), tmp_path / "out"
    nlc("compile", spec, "-o", out, "--backend", "eager")
    before = files_in(out)

    ran = nlc("compile", spec, "-o", out, "--backend", "eager", "--without", "share-flows")

    assert ran.code == 0
    assert any("share-flows" in name for name in before)
    assert not any("share-flows" in name for name in files_in(out))


def test_compile_refuses_a_folder_with_other_files_unless_forced(tmp_path: Path) -> None:
    spec = spec_file(tmp_path)

    refused = nlc("compile", spec, "-o", tmp_path, "--backend", "eager")

    assert refused.code == 4
    assert "error[NLC802]" in refused.err
    assert files_in(tmp_path) == {"small.yaml"}
    assert nlc("compile", spec, "-o", tmp_path, "--backend", "eager", "--force").code == 0
    assert {"small.yaml", "generated.py"} < files_in(tmp_path)


def test_compile_cannot_write_below_a_file(tmp_path: Path) -> None:
    spec = spec_file(tmp_path)

    for folder in (spec, spec / "out"):
        ran = nlc("compile", spec, "-o", folder, "--backend", "eager")
        assert ran.code == 4
        assert "error[NLC801]" in ran.err
    assert files_in(tmp_path) == {"small.yaml"}


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_compile_cannot_write_into_a_protected_folder(tmp_path: Path) -> None:
    spec, out = spec_file(tmp_path), tmp_path / "out"
    out.mkdir(mode=0o500)

    ran = nlc("compile", spec, "-o", out, "--backend", "eager")

    assert ran.code == 4
    assert "permission denied" in ran.err
    assert files_in(out) == set()


def test_compile_of_a_wrong_spec_leaves_no_folder(tmp_path: Path) -> None:
    ran = nlc("compile", spec_file(tmp_path, WRONG), "-o", tmp_path / "out", "--backend", "eager")

    assert ran.code == 1
    assert not (tmp_path / "out").exists()


def test_compile_warns_of_dropped_learners_and_prints_json(tmp_path: Path) -> None:
    spec = spec_file(tmp_path, SMALL.replace("o: S(q)", "o: q * 2"))

    ran = nlc("compile", spec, "-o", tmp_path / "out", "--backend", "eager", "--json")

    assert ran.code == 0, ran.err
    assert "warning[NLC505]" in ran.err
    assert ran.json["spec"]["name"] == "small"


def test_compile_says_why_there_is_no_code_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_file(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))

    ran = nlc("compile", spec, "-o", tmp_path / "out", "--json")

    assert ran.code == 0, ran.err
    assert "no C++ compiler" in ran.json["inductor_skipped"]


@pytest.mark.inductor
def test_compile_writes_the_code_of_inductor(tmp_path: Path) -> None:
    ran = nlc("compile", spec_file(tmp_path), "-o", tmp_path / "out", "--tokens", "8", "--form", "recurrent")

    assert ran.code == 0, ran.err
    assert {"inductor-00-forward.py", "inductor-01-backward.py"} < files_in(tmp_path / "out")
    assert "AsyncCompile" in (tmp_path / "out" / "inductor-00-forward.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("target", "start"), [("python", '"""'), ("program", "program "), ("text", "graph "), ("json", "{"), ("svg", "<svg")]
)
def test_emit_prints_one_form(target: str, start: str) -> None:
    ran = nlc("emit", OP, "--as", target)

    assert ran.code == 0, ran.err
    assert ran.out.startswith(start)


def test_emit_and_compile_agree(tmp_path: Path) -> None:
    assert nlc("compile", MODEL, "-o", tmp_path / "out", "--backend", "eager").code == 0

    for target, name in (("python", "generated.py"), ("program", "program.txt"), ("json", "graph.json"), ("svg", "graph.svg")):
        assert nlc("emit", MODEL, "--as", target).out == (tmp_path / "out" / name).read_text(encoding="utf-8")


def test_emit_writes_a_file(tmp_path: Path) -> None:
    ran = nlc("emit", OP, "--as", "python", "-o", tmp_path / "module.py")

    assert (ran.code, ran.out) == (0, "")
    assert (tmp_path / "module.py").read_text(encoding="utf-8") == nlc("emit", OP, "--as", "python").out


@pytest.mark.skipif(find_spec("torch_mlir") is not None, reason="torch-mlir is installed")
def test_emit_linalg_names_the_package_that_is_missing() -> None:
    ran = nlc("emit", OP, "--as", "linalg")

    assert ran.code == 3
    assert "error[NLC705]: torch-mlir is not installed" in ran.err
    assert "pip install 'nlc[mlir]'" in ran.err


@pytest.mark.torch_mlir
@pytest.mark.parametrize(
    ("dialect", "word"), [("torch-mlir", "torch.aten."), ("linalg", "linalg."), ("tosa", "tosa."), ("stablehlo", "stablehlo.")]
)
def test_emit_lowers_chunks_to_each_dialect(tmp_path: Path, dialect: str, word: str) -> None:
    ran = nlc("emit", spec_file(tmp_path), "--as", dialect, "--tokens", "6", "--form", "chunkwise", "--chunk", "4")

    assert ran.code == 0, ran.err
    assert word in ran.out
    assert "//   input q [1, 6, 2, 4]\n" in ran.out
    assert "//   output o\n//   state S\n" in ran.out


@pytest.mark.torch_mlir
@pytest.mark.slow
@pytest.mark.parametrize("name", Library().names("ops"))
def test_emit_lowers_every_op_of_the_library(name: str) -> None:
    ran = nlc("emit", f"ops/{name}", "--as", "linalg", "--tokens", "40")

    assert ran.code == 0, ran.err


@pytest.mark.torch_mlir
@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["torch-mlir", "linalg", "tosa", "stablehlo"])
def test_emit_lowers_a_step_of_the_model(dialect: str) -> None:
    ran = nlc("emit", MODEL, "--as", dialect, "--tokens", "1")

    assert ran.code == 0, ran.err


def test_a_refusal_names_the_operator_and_the_line_that_uses_it(tmp_path: Path) -> None:
    from nlc.api import compile
    from nlc.backends.mlir import refusal

    compiled = compile(spec_file(tmp_path, SMALL.replace("o: S(q)", "o: tanh(S(q))")), backend="eager")

    problem = refusal(compiled, "torch-mlir", "error: failed to legalize operation 'torch.aten.tanh' that was explicitly marked illegal")

    assert problem.message == "torch-mlir cannot lower the operator `aten.tanh`"
    assert str(problem.span).endswith("small.yaml:11:1")


@pytest.mark.inductor
def test_emit_prints_the_code_of_inductor(tmp_path: Path) -> None:
    ran = nlc("emit", spec_file(tmp_path), "--as", "inductor", "--tokens", "4", "--form", "recurrent")

    assert ran.code == 0, ran.err
    assert ran.out.startswith("# inductor-00-forward.py\n")


@pytest.mark.slow
@pytest.mark.triton
def test_emit_prints_the_code_for_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    spec = spec_file(tmp_path)

    ran = nlc("emit", spec, "--as", "inductor", "--target", "cuda:sm_80", "--tokens", "4", "--form", "recurrent")

    assert ran.code == 0, ran.err
    assert ran.out.startswith("# small for cuda:sm_80 (NVIDIA A100)")
    assert "# ---- stage_0 forward ----" in ran.out and "# ---- stage_0 backward ----" in ran.out
    assert "async_compile.triton(" in ran.out


def test_emit_names_the_package_that_gpu_code_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)

    ran = nlc("emit", OP, "--as", "ptx", "--target", "cuda:sm_90", "-o", tmp_path / "rule.ptx")

    assert ran.code == 3
    assert "error[NLC705]: triton is not installed" in ran.err
    assert "pip install 'nlc[gpu-emit]'" in ran.err
    assert files_in(tmp_path) == set()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("inductor", "--target", "cuda:sm_91"), "there is no target `cuda:sm_91`; targets: cpu, cuda:sm_80, cuda:sm_90, cuda:sm_100"),
        (("ptx",), "`--as ptx` needs a GPU; give `--target`: cuda:sm_80, cuda:sm_90, cuda:sm_100"),
        (("svg", "--target", "cuda:sm_90"), "`--as svg` has no `--target`; only inductor and ptx have one"),
    ],
)
def test_emit_refuses_a_target_that_does_not_fit(options: tuple[str, ...], message: str) -> None:
    ran = nlc("emit", OP, "--as", *options)

    assert ran.code == 2
    assert message in ran.err
