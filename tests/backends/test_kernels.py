"""The kernels of generated modules against literal loops, in values and gradients."""

import importlib.util
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from nlc.backends import kernels

N, G, C, K, V = 3, 2, 8, 5, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def assert_same(first: Callable[..., object], second: Callable[..., object], inputs: list[Tensor], tolerance: float = 1e-12) -> None:
    """Equal outputs, and equal gradients of a random linear function of all outputs."""

    def flatten(result: object) -> list[Tensor]:
        if isinstance(result, Tensor):
            return [result]
        assert isinstance(result, list | tuple)
        return [leaf for part in result for leaf in flatten(part)]

    def gradients(outputs: list[Tensor]) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(7)
        weights = [torch.randn(o.shape, generator=generator, dtype=o.dtype) for o in outputs]
        total = sum((w * o).sum() for w, o in zip(weights, outputs, strict=True))
        assert isinstance(total, Tensor)
        return torch.autograd.grad(total, inputs)

    ours, theirs = flatten(first(*inputs)), flatten(second(*inputs))
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)
    for left, right in zip(gradients(ours), gradients(theirs), strict=True):
        assert left.isfinite().all()
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


def kron(decay: Tensor, width: int) -> Tensor:
    """[G, n, n] -> [G, n * width, n * width]."""
    identity = torch.eye(width, dtype=decay.dtype)
    return torch.einsum("gij,kl->gikjl", decay, identity).flatten(3).flatten(1, 2)


def literal_sweep(scores: Tensor, v: Tensor, rows: Tensor, x: Tensor, decay: Tensor, z0: Tensor) -> tuple[Tensor, Tensor]:
    """The equations of the docstring, chunk after chunk, with a solve in each."""
    chunk, z, outs = v.shape[2], z0, []
    reads = scores.shape[2] - chunk
    identity = torch.eye(chunk, dtype=v.dtype)
    for score, v_i, row, x_i, decay_i in zip(scores, v, rows, x, decay, strict=True):
        error = torch.linalg.solve(identity + score[:, reads:].tril(-1), v_i - row[:, reads:] @ z)
        outs.append(row[:, :reads] @ z + score[:, :reads] @ error)
        z = kron(decay_i, z0.shape[1] // decay.shape[-1]) @ z + x_i.mT @ error
    return torch.stack(outs), z


def literal_free(d: Tensor, decay: Tensor, z0: Tensor) -> Tensor:
    states = [z0]
    for d_i, decay_i in zip(d, decay, strict=True):
        states.append(kron(decay_i, z0.shape[1] // decay.shape[-1]) @ states[-1] + d_i)
    return torch.stack(states)


def sweep_inputs(n: int, chunks: int = N, reads: int = C) -> list[Tensor]:
    depth = n * K
    shapes = [
        (chunks, G, reads + C, C),
        (chunks, G, C, V),
        (chunks, G, reads + C, depth),
        (chunks, G, C, depth),
        (chunks, G, n, n),
        (G, depth, V),
    ]
    return [draw(*shape, seed=i) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("reads", [0, C, 2 * C])
def test_sweep_is_the_loop(n: int, reads: int) -> None:
    assert_same(kernels.sweep, literal_sweep, sweep_inputs(n, reads=reads), 1e-9)


def test_zero_decay_forgets_the_state_and_keeps_its_gradient() -> None:
    scores, v, rows, x, decay, z0 = sweep_inputs(1)

    assert_same(kernels.sweep, literal_sweep, [scores, v, rows, x, torch.zeros_like(decay).requires_grad_(), z0], 1e-9)


@pytest.mark.parametrize("chunk", [32, 64, 128])
def test_correlated_keys_at_rate_one_in_float32(chunk: int) -> None:
    noise, common = draw(1, 4, chunk, 64).detach(), draw(64, seed=3).detach()
    keys = torch.nn.functional.normalize(0.3 * noise / 8 + 0.9 * torch.nn.functional.normalize(common, dim=-1), dim=-1)
    queries, v, z0 = draw(1, 4, chunk, 64, seed=5).detach(), draw(1, 4, chunk, 64, seed=6).detach(), torch.zeros(4, 64, 64).double()
    rows = torch.cat([queries, keys], 2)
    inputs = [rows @ keys.mT, v, rows, keys, torch.ones(1, 4, 1, 1).double(), z0]

    for ours, exact in zip(kernels.sweep(*(x.float() for x in inputs)), literal_sweep(*inputs), strict=True):
        assert (ours - exact).abs().max() < 5e-6 * exact.abs().max()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_inter_chunk_free_is_the_loop(n: int) -> None:
    assert_same(kernels.inter_chunk_free, literal_free, [draw(N, G, n * K, V), draw(N, G, n, n, seed=1), draw(G, n * K, V)])


def test_inter_chunk_free_without_decay_is_a_cumulative_sum() -> None:
    inputs = [draw(N, G, K, V), draw(G, K, V)]
    assert_same(
        lambda d, z0: kernels.inter_chunk_free(d, None, z0),
        lambda d, z0: literal_free(d, torch.ones(N, G, 1, 1, dtype=d.dtype), z0),
        inputs,
    )


def literal_propagated(gates: Tensor, columns: Tensor, looks: list[tuple[int, bool]]) -> list[Tensor]:
    n, chunk = gates.shape[-1], gates.shape[2]
    z = [torch.cat([torch.eye(n, dtype=gates.dtype).expand(*gates.shape[:2], n, n), gates.new_zeros(*gates.shape[:2], n, chunk)], -1)]
    for t in range(chunk):
        own = torch.nn.functional.one_hot(torch.tensor(n + t), n + chunk).to(gates.dtype)
        z.append(gates[:, :, t] @ z[-1] + columns[:, :, t, :, None] * own)
    rows = torch.stack([torch.stack(z[1:] if new else z[:-1], 2)[:, :, :, i] for i, new in looks])
    return [rows[..., :n], rows[..., n:], z[-1][..., n:].mT, z[-1][..., :n]]


@pytest.mark.parametrize(("n", "chunk"), [(1, 8), (2, 8), (3, 4), (3, 2)])
@pytest.mark.parametrize("zero", [False, True])
def test_propagated_is_the_loop(n: int, chunk: int, zero: bool) -> None:
    gates = draw(N, G, chunk, n, n).detach()
    if zero:
        gates[:, :, chunk // 2] = 0
        gates[:, 0, 0] = 0
    looks = list(dict.fromkeys([(0, True), (n - 1, False), (n - 1, True), (0, False)]))

    inputs = [gates.requires_grad_(), draw(N, G, chunk, n, seed=1)]
    assert_same(lambda F, b: kernels.propagated(F, b, looks), lambda F, b: literal_propagated(F, b, looks), inputs)


def literal_decayed(rows: Tensor, w: Tensor, log_keep: Tensor, inclusive: tuple[bool, ...]) -> list[Tensor]:
    keep, chunk = log_keep.exp(), w.shape[2]
    zero = 0 * keep[..., 0]
    scores, carried = [], []
    for kind, part in zip(inclusive, rows.unflatten(2, (len(inclusive), chunk)).unbind(2), strict=True):
        ends = [t + kind for t in range(chunk)]
        between = [[keep[..., s + 1 : end].prod(-1) if s < end else zero for s in range(chunk)] for end in ends]
        scores.append(part @ w.mT * torch.stack([torch.stack(row, -1) for row in between], -2))
        carried.append(part * torch.stack([keep[..., :end].prod(-1) for end in ends], -1)[..., None])
    to_end = torch.stack([keep[..., s + 1 :].prod(-1) for s in range(chunk)], -1)
    return [torch.cat(scores, 2), torch.cat(carried, 2), w * to_end[..., None], keep.prod(-1)[..., None, None]]


@pytest.mark.parametrize("inclusive", [(True,), (False,), (True, True), (True, False), (False, True, False)])
def test_decayed(inclusive: tuple[bool, ...]) -> None:
    inputs = [draw(N, G, len(inclusive) * C, K), draw(N, G, C, K), draw(N, G, C)]

    ours, literal = (lambda r, w, g, f=f: f(r, w, g, inclusive) for f in (kernels.decayed, literal_decayed))
    assert_same(ours, literal, inputs, 1e-11)


def test_decayed_without_rows_is_the_write_alone() -> None:
    w, log_keep = draw(N, G, C, K), draw(N, G, C)
    scores, carried, *_ = kernels.decayed(w[:, :, :0], w, log_keep, ())

    assert scores.shape == (N, G, 0, C) and carried.shape == (N, G, 0, K)
    assert_same(lambda w, g: kernels.decayed(w[:, :, :0], w, g, ())[2:], lambda w, g: literal_decayed(w, w, g, (True,))[2:], [w, log_keep])


def test_propagated_and_decayed_agree() -> None:
    log_keep, one = draw(N, G, C), torch.ones(N, G, C, 1, dtype=torch.float64)
    gates = log_keep.exp()[..., None, None]
    scores, carried, x, total = kernels.decayed(torch.cat([one, one], 2), one, log_keep, (True, False))
    seen, between, to_end, whole = kernels.propagated(gates, one, [(0, True), (0, False)])

    for ours, theirs in ((torch.cat([*between], 2), scores), (torch.cat([*seen], 2), carried), (to_end, x), (whole, total)):
        torch.testing.assert_close(ours, theirs)


def test_decayed_of_strong_gates_has_finite_gradients() -> None:
    log_keep = torch.full((1, 2, 64), -8.0, requires_grad=True)
    unit = torch.ones(1, 2, 64, 1)
    parts = kernels.decayed(unit, unit, log_keep, (True,))
    (gradient,) = torch.autograd.grad(sum((p.sum() for p in parts), torch.zeros(())), log_keep)

    assert gradient.isfinite().all()


def test_decayed_keeps_float32_accuracy_beside_strong_gates() -> None:
    log_keep = torch.full((1, 1, 256), -1e-3, dtype=torch.float64)
    log_keep[..., :128] = -8.0
    unit = torch.ones(1, 1, 256, 1, dtype=torch.float64)
    exact = kernels.decayed(unit, unit, log_keep, (True,))[0]

    assert (kernels.decayed(unit.float(), unit.float(), log_keep.float(), (True,))[0] - exact).abs().max() < 5e-7


def operator_cases() -> list[tuple[str, str, Sequence[object]]]:
    n = 2
    return [
        ("sweep", "chunk_sweep_4", sweep_inputs(n)),
        ("inter_chunk_free", "inter_chunk_free_4", [draw(N, G, n * K, V), draw(N, G, n, n), draw(G, n * K, V)]),
        ("propagated", "propagated_3", [draw(N, G, C, n, n), draw(N, G, C, n), [0, 1]]),
        (
            "backward of inter_chunk_free, the decay a part of something",
            "inter_chunk_free_backward_4",
            [draw(N, G, n, n).detach().mT, draw(N + 1, G, n * K, V).detach(), draw(N + 1, G, n * K, V).detach()],
        ),
    ]


@pytest.mark.parametrize(("name", "registered", "inputs"), operator_cases(), ids=lambda case: case if isinstance(case, str) else "")
def test_operators_pass_opcheck(name: str, registered: str, inputs: Sequence[object]) -> None:
    torch.library.opcheck(getattr(torch.ops.nlc, registered).default, tuple(inputs))


def test_graph_does_not_grow_with_the_sequence() -> None:
    def step(*inputs: Tensor) -> tuple[Tensor, ...]:
        out, last = kernels.sweep(*inputs)
        return torch.autograd.grad(out.sum() + last.sum(), inputs)

    sizes = [len(make_fx(step)(*sweep_inputs(1, chunks)).graph.nodes) for chunks in (2, 64)]

    assert sizes[0] == sizes[1]


def test_a_second_copy_of_the_kernels_shares_the_operators() -> None:
    assert kernels.__file__ is not None
    spec = importlib.util.spec_from_file_location("kernels_of_another_module", kernels.__file__)
    assert spec is not None and spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)

    assert copy._SWEEP is kernels._SWEEP
    assert_same(copy.sweep, kernels.sweep, sweep_inputs(2))
