"""The kernels of generated modules against literal loops, in values and gradients."""

import importlib.util
from collections.abc import Callable

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


def literal_inter_chunk(e0: Tensor, y: Tensor, x: Tensor, decay: Tensor, z0: Tensor) -> tuple[Tensor, Tensor]:
    errors, states = [], [z0]
    for e0_i, y_i, x_i, decay_i in zip(e0, y, x, decay, strict=True):
        error = e0_i - y_i @ states[-1]
        states.append(kron(decay_i, z0.shape[1] // decay.shape[-1]) @ states[-1] + x_i.mT @ error)
        errors.append(error)
    return torch.stack(errors), torch.stack(states)


def literal_free(d: Tensor, decay: Tensor, z0: Tensor) -> Tensor:
    states = [z0]
    for d_i, decay_i in zip(d, decay, strict=True):
        states.append(kron(decay_i, z0.shape[1] // decay.shape[-1]) @ states[-1] + d_i)
    return torch.stack(states)


def inter_chunk_inputs(n: int, chunks: int = N) -> list[Tensor]:
    depth = n * K
    shapes = [(chunks, G, C, V), (chunks, G, C, depth), (chunks, G, C, depth), (chunks, G, n, n), (G, depth, V)]
    return [draw(*shape, seed=i) for i, shape in enumerate(shapes)]


def strictly_lower(*shape: int) -> Tensor:
    return draw(*shape).detach().tril(-1).requires_grad_()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_inter_chunk_is_the_loop(n: int) -> None:
    assert_same(kernels.inter_chunk, literal_inter_chunk, inter_chunk_inputs(n))


@pytest.mark.parametrize("n", [1, 2])
def test_inter_chunk_solved_is_solve_then_loop(n: int) -> None:
    def literal(a: Tensor, u: Tensor, y: Tensor, x: Tensor, decay: Tensor, z0: Tensor) -> tuple[Tensor, Tensor]:
        inverse = torch.linalg.inv(torch.eye(C, dtype=a.dtype) + a.tril(-1))
        return literal_inter_chunk(inverse @ u, inverse @ y, x, decay, z0)

    assert_same(kernels.inter_chunk_solved, literal, [strictly_lower(N, G, C, C), *inter_chunk_inputs(n)])


@pytest.mark.parametrize("n", [1, 2])
def test_inter_chunk_read_is_solve_then_loop_then_read(n: int) -> None:
    def literal(a: Tensor, u: Tensor, y: Tensor, x: Tensor, decay: Tensor, z0: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inverse = torch.linalg.inv(torch.eye(C, dtype=a.dtype) + a.tril(-1))
        errors, states = literal_inter_chunk(inverse @ u, inverse @ y, x, decay, z0)
        return rows @ states[:-1], errors, states[-1]

    assert_same(kernels.inter_chunk_read, literal, [strictly_lower(N, G, C, C), *inter_chunk_inputs(n), draw(N, G, 3, n * K)])


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


def test_zero_decay_forgets_the_state_and_keeps_its_gradient() -> None:
    e0, y, x, decay, z0 = inter_chunk_inputs(1)
    zero = torch.zeros_like(decay).requires_grad_()

    assert_same(kernels.inter_chunk, literal_inter_chunk, [e0, y, x, zero, z0])


@pytest.mark.parametrize("chunk", [1, 2, 4, 8, 16, 32, 64, 128])
def test_unit_lower_solve(chunk: int) -> None:
    def literal(a: Tensor, rhs: Tensor) -> Tensor:
        if chunk > 16:  # the loop is too slow there
            return torch.linalg.inv(torch.eye(chunk, dtype=a.dtype) + a.tril(-1)) @ rhs
        rows: list[Tensor] = []
        for t in range(chunk):
            row = rhs[..., t, :] - 0 * a[..., t, t : t + 1]
            if t:
                row = row - (a[..., t, :t].unsqueeze(-2) @ torch.stack(rows, -2)).squeeze(-2)
            rows.append(row)
        return torch.stack(rows, -2)

    a = (strictly_lower(2, G, chunk, chunk).detach() * chunk**-0.5).requires_grad_()
    rhs = draw(2, G, chunk, V)

    assert_same(kernels.unit_lower_solve, literal, [a, rhs], 1e-10)
    assert_same(lambda a, rhs: kernels.unit_lower_inverse(a) @ rhs + 0 * a.sum(), lambda a, rhs: literal(a.tril(-1), rhs), [a, rhs], 1e-10)


@pytest.mark.parametrize("chunk", [32, 64, 128])
def test_correlated_keys_at_rate_one_in_float32(chunk: int) -> None:
    noise, common = draw(4, chunk, 64).detach(), draw(64, seed=3).detach()
    keys = torch.nn.functional.normalize(0.3 * noise / 8 + 0.9 * torch.nn.functional.normalize(common, dim=-1), dim=-1)
    a, rhs = (keys @ keys.mT).tril(-1), draw(4, chunk, 64).detach()
    exact = torch.linalg.solve_triangular(a, rhs, upper=False, unitriangular=True)

    for solution in (kernels.unit_lower_solve(a.float(), rhs.float()), kernels.unit_lower_inverse(a.float()) @ rhs.float()):
        assert (solution - exact).abs().max() < 5e-6 * exact.abs().max()


@pytest.mark.parametrize("inclusive", [True, False])
def test_segment_decay(inclusive: bool) -> None:
    def literal(log_keep: Tensor) -> list[Tensor]:
        keep, shift = log_keep.exp(), 0 if inclusive else 1
        product = [[keep[..., s + 1 : t + 1 - shift].prod(-1) if s <= t - shift else 0 * keep[..., 0] for s in range(C)] for t in range(C)]
        return [
            torch.stack([torch.stack(row, -1) for row in product], -2),
            torch.stack([keep[..., : t + 1 - shift].prod(-1) for t in range(C)], -1),
            torch.stack([keep[..., s + 1 :].prod(-1) for s in range(C)], -1),
            keep.prod(-1),
        ]

    assert_same(lambda g: kernels.segment_decay(g, inclusive), literal, [draw(N, G, C)])


def test_segment_decay_of_strong_gates_has_finite_gradients() -> None:
    log_keep = torch.full((2, 64), -8.0, requires_grad=True)
    parts = kernels.segment_decay(log_keep)
    (gradient,) = torch.autograd.grad(sum((p.sum() for p in parts), torch.zeros(())), log_keep)

    assert gradient.isfinite().all()


def test_segment_decay_keeps_float32_accuracy_beside_strong_gates() -> None:
    log_keep = torch.full((256,), -1e-3, dtype=torch.float64)
    log_keep[:128] = -8.0
    exact = kernels.segment_decay(log_keep)[0]

    assert (kernels.segment_decay(log_keep.float())[0] - exact).abs().max() < 5e-7


SAME = [[True, False], [False, True], [False, False]]


def literal_responses(gates: Tensor, *vectors: Tensor) -> list[object]:
    rows, columns, inclusive = vectors[:3], vectors[3:], [True, False, True]
    length = gates.shape[-3]

    def product(row: Tensor, last: int, first: int) -> Tensor:
        for t in range(last, first - 1, -1):
            row = (row.unsqueeze(-2) @ gates[..., t, :, :]).squeeze(-2)
        return row

    def entry(i: int, j: int, t: int, s: int) -> Tensor:
        row, column = rows[i][..., t, :], columns[j][..., s, :]
        if t == s:
            return (row * column).sum(-1) * float(SAME[i][j])
        carried = product(row, t if inclusive[i] else t - 1, s + 1)
        return (carried * column).sum(-1) * float(t > s)

    identity = torch.eye(gates.shape[-1], dtype=gates.dtype).expand(*gates.shape[:-3], -1, -1)
    totals = [torch.stack([product(row, length - 1, s + 1) for row in identity.unbind(-2)], -2) for s in range(-1, length)]
    return [
        [
            [torch.stack([torch.stack([entry(i, j, t, s) for s in range(length)], -1) for t in range(length)], -2) for j in range(2)]
            for i in range(3)
        ],
        [torch.stack([product(rows[i][..., t, :], t if inclusive[i] else t - 1, 0) for t in range(length)], -2) for i in range(3)],
        [torch.stack([(totals[s + 1] @ column[..., s, :].unsqueeze(-1)).squeeze(-1) for s in range(length)], -2) for column in columns],
        totals[0],
    ]


@pytest.mark.parametrize(("n", "chunk"), [(1, 8), (2, 8), (3, 4), (2, 1)])
@pytest.mark.parametrize("zero", [False, True])
def test_responses(n: int, chunk: int, zero: bool) -> None:
    gates = draw(2, chunk, n, n).detach()
    if zero:
        gates[:, chunk // 2] = 0
        gates[:, 0, 0] = 0
    vectors = [draw(2, chunk, n, seed=i) for i in range(5)]

    assert_same(
        lambda gates, *v: kernels.responses(gates, list(v[:3]), list(v[3:]), [True, False, True], SAME),
        literal_responses,
        [gates.requires_grad_(), *vectors],
    )


def test_responses_and_segment_decay_agree() -> None:
    log_keep = draw(N, C)
    one = torch.ones(N, C, 1, dtype=torch.float64)
    between, rows, columns, total = kernels.responses(log_keep.exp()[..., None, None], [one, one], [one], [True, False], [[True], [False]])

    for i, inclusive in enumerate((True, False)):
        expected = kernels.segment_decay(log_keep, inclusive)
        torch.testing.assert_close(between[i][0], expected[0])
        torch.testing.assert_close(rows[i].squeeze(-1), expected[1])
        torch.testing.assert_close(columns[0].squeeze(-1), expected[2])
        torch.testing.assert_close(total[..., 0, 0], expected[3])


def operator_cases() -> list[tuple[str, list[Tensor]]]:
    n = 2
    return [
        ("inter_chunk", inter_chunk_inputs(n)),
        ("inter_chunk_solved", [strictly_lower(N, G, C, C), *inter_chunk_inputs(n)]),
        ("inter_chunk_read", [strictly_lower(N, G, C, C), *inter_chunk_inputs(n), draw(N, G, 3, n * K)]),
        ("inter_chunk_free", [draw(N, G, n * K, V), draw(N, G, n, n), draw(G, n * K, V)]),
        ("unit_lower_solve", [strictly_lower(N, G, C, C), draw(N, G, C, V)]),
    ]


@pytest.mark.parametrize(("name", "inputs"), operator_cases(), ids=lambda case: case if isinstance(case, str) else "")
def test_operators_pass_opcheck(name: str, inputs: list[Tensor]) -> None:
    torch.library.opcheck(getattr(torch.ops.nlc, name).default, tuple(inputs))


@pytest.mark.parametrize(("name", "inputs"), operator_cases(), ids=lambda case: case if isinstance(case, str) else "")
def test_operators_have_the_numerical_gradient(name: str, inputs: list[Tensor]) -> None:
    kernel: Callable[..., Tensor | tuple[Tensor, ...]] = getattr(kernels, name)
    small = [x.detach()[:2, :1, :2, :2] if x.dim() == 4 else x.detach()[:1, :2, :2] for x in inputs]
    triangular = name in ("inter_chunk_solved", "inter_chunk_read", "unit_lower_solve")

    def call(*arguments: Tensor) -> Tensor | tuple[Tensor, ...]:
        return kernel(arguments[0].tril(-1), *arguments[1:]) if triangular else kernel(*arguments)

    assert torch.autograd.gradcheck(call, [x.requires_grad_() for x in small])


def test_graph_does_not_grow_with_the_sequence() -> None:
    def step(*inputs: Tensor) -> tuple[Tensor, ...]:
        errors, states = kernels.inter_chunk(*inputs)
        return torch.autograd.grad(errors.sum() + states.sum(), inputs)

    sizes = [len(make_fx(step)(*inter_chunk_inputs(1, chunks)).graph.nodes) for chunks in (2, 64)]

    assert sizes[0] == sizes[1]


def test_export_does_not_grow_with_the_sequence() -> None:
    class Module(torch.nn.Module):
        def forward(self, e0: Tensor, y: Tensor, x: Tensor, decay: Tensor, z0: Tensor) -> tuple[Tensor, Tensor]:
            return kernels.inter_chunk(e0, y, x, decay, z0)

    sizes = []
    for chunks in (2, 64):
        inputs = tuple(x.detach() for x in inter_chunk_inputs(1, chunks))
        program = torch.export.export(Module(), inputs)
        sizes.append(len(program.graph.nodes))
        torch.testing.assert_close(program.module()(*inputs), literal_inter_chunk(*inputs))

    assert sizes[0] == sizes[1]


def test_a_second_copy_of_the_kernels_shares_the_operators() -> None:
    assert kernels.__file__ is not None
    spec = importlib.util.spec_from_file_location("kernels_of_another_module", kernels.__file__)
    assert spec is not None and spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)

    assert copy._INTER_CHUNK is kernels._INTER_CHUNK
    assert_same(copy.inter_chunk, kernels.inter_chunk, inter_chunk_inputs(2))
