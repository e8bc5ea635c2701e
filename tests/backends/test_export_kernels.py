"""The kernels for export give what the registered ones give; their generated modules hold nothing that is registered."""

import pytest
import torch
from torch import Tensor

from nlc.api import build
from nlc.backends import export_kernels, kernels
from nlc.backends.torch_module import generate
from nlc.language.library import Library
from nlc.passmanager import PassManager, pipeline
from nlc.program.program import schedule

# Axes: N chunks, G copies, C tokens of a chunk, K key, V value, n states
N, G, K, V = 3, 2, 5, 4


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("kinds", [(), (True,), (False,), (True, False)])
def test_decayed(kinds: tuple[bool, ...]) -> None:
    rows, w, log_keep = draw(N, G, 8 * len(kinds), K), draw(N, G, 8, K), -draw(N, G, 8).abs()

    torch.testing.assert_close(export_kernels.decayed(rows, w, log_keep, kinds), kernels.decayed(rows, w, log_keep, kinds))


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("looks", [[], [(0, True)], [(0, True), (0, False)]])
def test_propagated(n: int, looks: list[tuple[int, bool]]) -> None:
    gates, columns = draw(N, G, 8, n, n), draw(N, G, 8, n)

    torch.testing.assert_close(export_kernels.propagated(gates, columns, looks), kernels.propagated(gates, columns, looks))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_inter_chunk_free(n: int) -> None:
    width = max(n, 1) * K
    d, z0, decay = draw(N, G, width, V), draw(G, width, V), draw(N, G, n, n) if n else None

    torch.testing.assert_close(export_kernels.inter_chunk_free(d, decay, z0), kernels.inter_chunk_free(d, decay, z0))


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("chunk", [4, 16, 64])
def test_sweep(n: int, chunk: int) -> None:
    scores, v, rows = 0.1 * draw(N, G, 2 * chunk, chunk), draw(N, G, chunk, V), draw(N, G, 2 * chunk, n * K)
    arguments = (scores, v, rows, 0.1 * draw(N, G, chunk, n * K), draw(N, G, n, n), draw(G, n * K, V))

    torch.testing.assert_close(export_kernels.sweep(*arguments), kernels.sweep(*arguments), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "spec",
    [f"ops/{name}" for name in Library().names("ops")] + [f"models/{name}" for name in Library().names("models")],
)
def test_the_form_for_export_differs_in_the_copied_kernels_only(spec: str) -> None:
    program = schedule(PassManager(pipeline()).run(build(spec))[0])
    usual, export = (generate(program, form) for form in (False, True))

    assert "torch.ops.nlc" not in export.source
    assert "torch.linalg" not in export.source
    assert export.source.partition("_recurrent(")[2] == usual.source.partition("_recurrent(")[2]
