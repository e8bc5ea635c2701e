"""GPU code made on a machine that has no GPU."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import nlc
from nlc.backends import gpu_code as backend
from nlc.backends.gpu_code import TARGETS, GpuCode
from nlc.diagnostics import BackendError, UsageError

DIMS = {"H": 2, "K": 16, "V": 16}

# Of each graph, at 1 row of 64 tokens: Triton kernels; bytes that its kernels and calls read and write. Whoever beats a number lowers it.
RECORDED = {
    "ops/gated_delta_rule": {
        "stage_0 forward": (8, 345_152),
        "stage_0 backward": (9, 561_760),
        "nlc::chunk_sweep_4, one chunk": (7, 174_088),
        "nlc::chunk_sweep_backward_4, one chunk": (5, 225_296),
    },
    "ops/momentum_delta": {
        "stage_0 forward": (10, 576_128),
        "stage_0 backward": (17, 937_280),
        "nlc::chunk_sweep_4, one chunk": (7, 241_696),
        "nlc::chunk_sweep_backward_4, one chunk": (5, 299_136),
    },
}


def lower(spec: str) -> GpuCode:
    graph = nlc.compile(spec, DIMS, backend="eager").graph
    return backend.gpu_code(graph, "cuda:sm_90", batch=1, tokens=64, with_ptx=True)


@pytest.fixture(scope="module")
def lowered() -> dict[str, GpuCode]:
    """All specs at once: each is lowered by a process of its own."""
    with ThreadPoolExecutor() as threads:
        return dict(zip(RECORDED, threads.map(lower, RECORDED), strict=True))


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize("spec", RECORDED)
def test_forward_backward_and_one_chunk_become_triton_kernels(lowered: dict[str, GpuCode], spec: str) -> None:
    text = lowered[spec].triton()

    assert "nlc-gpu-" not in text  # the folder of the run
    assert [graph.title for graph in lowered[spec].graphs] == list(RECORDED[spec])
    for graph in lowered[spec].graphs:
        assert graph.kernels and all("@triton.jit" in source for source in graph.kernels.values())
        assert f"# ---- {graph.title} ----\n\n{graph.code.strip()}" in text


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize("spec", RECORDED)
def test_the_head_says_what_it_was_made_with_and_what_is_no_triton(lowered: dict[str, GpuCode], spec: str) -> None:
    head = lowered[spec].triton().partition("\n\n")[0]

    assert head.startswith(f"# {spec.removeprefix('ops/')} for cuda:sm_90 (NVIDIA H100)")
    assert "torch " in head and "triton " in head and "float32; inputs q [1, 64, 2, 16], " in head
    assert "torch.ops.nlc.chunk_sweep_4.default x 1" in head
    assert "torch.ops.nlc.chunk_sweep_backward_4.default x 1" in head
    assert "torch.ops.aten.linalg_solve_triangular.default x 1" in head


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize("spec", RECORDED)
def test_every_kernel_compiles_to_ptx(lowered: dict[str, GpuCode], spec: str) -> None:
    text = lowered[spec].ptx()

    assert "nlc-gpu-" not in text
    for graph in lowered[spec].graphs:
        assert list(graph.ptx) == list(graph.kernels)
        for ptx in graph.ptx.values():
            assert ".target sm_90" in ptx and ".visible .entry" in ptx
            assert ptx.rstrip() in text


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize("spec", RECORDED)
def test_no_more_kernels_and_no_more_bytes_than_recorded(lowered: dict[str, GpuCode], spec: str) -> None:
    for graph in lowered[spec].graphs:
        kernels, moved = RECORDED[spec][graph.title]
        assert len(graph.kernels) <= kernels, graph.title
        assert graph.bytes <= moved, graph.title


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os; os.abort()", "was ended by SIGABRT"),
        ("raise ValueError('no such instruction')", "failed: ValueError: no such instruction"),
        ("raise SystemExit(5)", "failed: exit code 5, without a message"),
        ("pass", "gave no answer"),
    ],
)
def test_a_lowering_that_dies_is_a_backend_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, reason: str) -> None:
    file = tmp_path / "lowering.py"
    file.write_text(program, encoding="utf-8")
    monkeypatch.setattr(backend, "LOWERING", file)
    monkeypatch.setattr(backend, "require", lambda module: None)

    with pytest.raises(BackendError) as error:
        lower("ops/delta_rule")

    assert error.value.exit_code == 3
    assert error.value.diagnostics[0].code == "NLC704"
    assert error.value.diagnostics[0].message == f"the lowering of `delta_rule` to GPU code {reason}"


def test_a_missing_triton_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)

    with pytest.raises(BackendError) as error:
        lower("ops/delta_rule")

    assert error.value.exit_code == 3
    assert error.value.diagnostics[0].code == "NLC705"
    assert "pip install 'nlc[gpu-emit]'" in error.value.render()


def test_an_unknown_target_lists_the_known_ones() -> None:
    with pytest.raises(UsageError) as error:
        backend.chip_of("cuda:sm_91")

    assert all(target in str(error.value) for target in ("cpu", *TARGETS))
