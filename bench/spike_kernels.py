"""Forms of the inter-chunk recurrence that were measured for docs/adr/0001 and not kept."""

import torch
from torch import Tensor

from nlc.backends.kernels import segment_decay


def _decay_gradient(d_after: Tensor, before: Tensor, n: int) -> Tensor:
    """Gradient of the decay of every chunk, from d_after and before [N, G, n * K, V]."""
    chunks, groups = before.shape[:2]
    return torch.bmm(d_after.reshape(chunks * groups, n, -1), before.reshape(chunks * groups, n, -1).mT).view(chunks, groups, n, n)


def _advance(decay: Tensor, state: Tensor, out: Tensor) -> None:
    """out = (decay kron I) state, for decay [G, n, n] and states [G, n * K, V]."""
    n = decay.shape[-1]
    if n == 1:
        torch.mul(state, decay, out=out)
    else:
        torch.bmm(decay, state.unflatten(1, (n, -1)).flatten(2), out=out.view(out.shape[0], n, -1))


BASE_BLOCK = 8  # triangular blocks of this size are inverted by row substitution, larger ones by merging pairs


def unit_lower_inverse(a: Tensor) -> Tensor:
    """(I + a)^-1 for strictly lower a [..., C, C], C a power of two: substitution, never a power of a.

    Powers of a (the doubling product) overflow for correlated keys; substitution and [[L, 0], [-R A L, R]] do not.
    """
    chunk = a.shape[-1]
    size = min(BASE_BLOCK, chunk)
    blocks = a.reshape(-1, chunk // size, size, chunk // size, size)
    # Rows first, matrices last: one row of all blocks is one contiguous operation.
    lower = torch.diagonal(blocks, dim1=1, dim2=3).permute(1, 2, 0, 3).flatten(2).contiguous()
    rows = [torch.zeros_like(lower[0])]
    rows[0][0] = 1
    for i in range(1, size):
        row = torch.zeros_like(lower[0])
        for j in range(i):
            row[: j + 1].addcmul_(lower[i, j], rows[j][: j + 1], value=-1)
        row[i] = 1
        rows.append(row)
    inverse = torch.stack(rows).unflatten(2, (-1, chunk // size)).permute(2, 3, 0, 1).contiguous()
    flat = a.reshape(-1, chunk, chunk)
    while size < chunk:
        left, right = inverse[:, 0::2], inverse[:, 1::2]
        pairs = flat.unflatten(1, (-1, 2, size)).unflatten(4, (-1, 2, size))
        cross = torch.diagonal(pairs[:, :, 1, :, :, 0], dim1=1, dim2=3).permute(0, 3, 1, 2)
        merged = flat.new_zeros(*left.shape[:2], 2, size, 2, size)
        merged[:, :, 0, :, 0] = left
        merged[:, :, 1, :, 1] = right
        merged[:, :, 1, :, 0] = -(right @ (cross @ left))
        inverse = merged.flatten(4).flatten(2, 3)
        size *= 2
    result: Tensor = inverse.view(a.shape)
    return result


def _unit_lower_solve_forward(a: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand(a.shape)
    # unitriangular: the diagonal is not read, so a needs no identity added. A row-major lower matrix is a column-major
    # upper one, which the library takes without a copy.
    inverse = torch.linalg.solve_triangular(a.mT, identity, upper=True, unitriangular=True).mT.contiguous()
    return inverse @ rhs, inverse


def _unit_lower_solve_backward(inverse: Tensor, solution: Tensor, d_solution: Tensor) -> tuple[Tensor, Tensor]:
    d_rhs = inverse.mT @ d_solution
    return (d_rhs @ solution.mT).tril_(-1).neg_(), d_rhs


def _define_unit_lower_solve() -> torch._ops.OpOverload:
    """Registers the solve and its backward, once in a process."""
    if not hasattr(torch.ops.nlc_spike, "unit_lower_solve"):
        backward = torch.library.custom_op("nlc_spike::unit_lower_solve_backward", _unit_lower_solve_backward, mutates_args=())
        backward.register_fake(lambda inverse, solution, d_solution: (torch.empty_like(inverse), torch.empty_like(solution)))
        forward = torch.library.custom_op("nlc_spike::unit_lower_solve", _unit_lower_solve_forward, mutates_args=())
        forward.register_fake(lambda a, rhs: (rhs.new_empty(rhs.shape), a.new_empty(a.shape)))
        forward.register_autograd(
            lambda ctx, d_solution, _: backward(*ctx.saved_tensors, d_solution),
            setup_context=lambda ctx, inputs, output: ctx.save_for_backward(output[1], output[0]),
        )
    return torch.ops.nlc_spike.unit_lower_solve.default


_UNIT_LOWER_SOLVE = _define_unit_lower_solve()


def unit_lower_solve(a: Tensor, rhs: Tensor) -> Tensor:
    """(I + a)^-1 rhs for strictly lower a [..., C, C] and rhs [..., C, V]; the backward reuses the inverse."""
    solution: Tensor = _UNIT_LOWER_SOLVE(a, rhs)[0]
    return solution


def _inter_chunk_forward(e0: Tensor, y: Tensor, x: Tensor, decay: Tensor, z0: Tensor) -> tuple[Tensor, Tensor]:
    errors = torch.empty(e0.shape, dtype=e0.dtype, device=e0.device)
    states = z0.new_empty(e0.shape[0] + 1, *z0.shape)
    states[0] = z0
    state = states[0]
    steps = zip(e0.unbind(), y.unbind(), x.mT.unbind(), decay.unbind(), errors.unbind(), states[1:].unbind(), strict=True)
    for e0_i, y_i, xt_i, decay_i, error, following in steps:
        torch.baddbmm(e0_i, y_i, state, alpha=-1, out=error)
        _advance(decay_i, state, following)
        following.baddbmm_(xt_i, error)
        state = following
    return errors, states


def _inter_chunk_backward(
    y: Tensor, x: Tensor, decay: Tensor, errors: Tensor, states: Tensor, d_errors: Tensor, d_states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    d_e0 = torch.empty_like(errors)
    d_z = torch.empty_like(states)  # of the state at the start of every chunk, through everything after it
    d_z[-1] = d_states[-1]
    scratch = torch.empty_like(states[0])
    for i in range(errors.shape[0] - 1, -1, -1):
        torch.baddbmm(d_errors[i], x[i], d_z[i + 1], out=d_e0[i])
        _advance(decay[i].mT, d_z[i + 1], scratch)
        torch.add(d_states[i], scratch, out=d_z[i])
        d_z[i].baddbmm_(y[i].mT, d_e0[i], alpha=-1)
    return (
        d_e0,
        (d_e0 @ states[:-1].mT).neg_(),
        errors @ d_z[1:].mT,
        _decay_gradient(d_z[1:], states[:-1], decay.shape[-1]),
        d_z[0].clone(),
    )


def _define_inter_chunk() -> torch._ops.OpOverload:
    """Registers the recurrence and its backward, once in a process."""
    if not hasattr(torch.ops.nlc_spike, "inter_chunk"):
        backward = torch.library.custom_op("nlc_spike::inter_chunk_backward", _inter_chunk_backward, mutates_args=())
        backward.register_fake(
            lambda y, x, decay, errors, states, d_errors, d_states: (
                torch.empty_like(errors),
                y.new_empty(y.shape),
                x.new_empty(x.shape),
                decay.new_empty(decay.shape),
                states.new_empty(states.shape[1:]),
            )
        )
        forward = torch.library.custom_op("nlc_spike::inter_chunk", _inter_chunk_forward, mutates_args=())
        forward.register_fake(lambda e0, y, x, decay, z0: (e0.new_empty(e0.shape), z0.new_empty(e0.shape[0] + 1, *z0.shape)))
        forward.register_autograd(
            lambda ctx, d_errors, d_states: backward(*ctx.saved_tensors, d_errors, d_states),
            setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[1:4], *output),
        )
    return torch.ops.nlc_spike.inter_chunk.default


_INTER_CHUNK = _define_inter_chunk()


def inter_chunk(e0: Tensor, y: Tensor, x: Tensor, decay: Tensor, z0: Tensor) -> tuple[Tensor, Tensor]:
    """Errors and chunk-start states of e_i = e0_i - y_i z_i, z_{i+1} = (decay_i kron I) z_i + x_i^T e_i.

    e0 [N, G, C, V], y and x [N, G, C, D], decay [N, G, n, n], z0 [G, D, V].
    Returns errors [N, G, C, V] and states [N + 1, G, D, V], the last of which is the final state.
    One operator whatever N is: the graph of a long sequence is as small as that of a short one.
    """
    errors, states = _INTER_CHUNK(e0, y, x, decay, z0)
    return errors, states


def _inter_chunk_solved_forward(a: Tensor, u: Tensor, y: Tensor, x: Tensor, decay: Tensor, z0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand(a.shape)
    inverse = torch.linalg.solve_triangular(a.mT, identity, upper=True, unitriangular=True).mT.contiguous()
    errors = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    states = z0.new_empty(u.shape[0] + 1, *z0.shape)
    states[0] = z0
    state, residual = states[0], torch.empty_like(errors[0])
    steps = zip(u.unbind(), y.unbind(), x.mT.unbind(), decay.unbind(), inverse.unbind(), errors.unbind(), states[1:].unbind(), strict=True)
    for u_i, y_i, xt_i, decay_i, inverse_i, error, following in steps:
        torch.baddbmm(u_i, y_i, state, alpha=-1, out=residual)
        torch.bmm(inverse_i, residual, out=error)
        _advance(decay_i, state, following)
        following.baddbmm_(xt_i, error)
        state = following
    return errors, states, inverse


def _inter_chunk_solved_backward(
    y: Tensor, x: Tensor, decay: Tensor, errors: Tensor, states: Tensor, inverse: Tensor, d_errors: Tensor, d_states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    d_u = torch.empty_like(errors)
    d_z = torch.empty_like(states)
    d_z[-1] = d_states[-1]
    d_error, scratch = torch.empty_like(errors[0]), torch.empty_like(states[0])
    for i in range(errors.shape[0] - 1, -1, -1):
        torch.baddbmm(d_errors[i], x[i], d_z[i + 1], out=d_error)
        torch.bmm(inverse[i].mT, d_error, out=d_u[i])
        _advance(decay[i].mT, d_z[i + 1], scratch)
        torch.add(d_states[i], scratch, out=d_z[i])
        d_z[i].baddbmm_(y[i].mT, d_u[i], alpha=-1)
    return (
        (d_u @ errors.mT).tril_(-1).neg_(),
        d_u,
        (d_u @ states[:-1].mT).neg_(),
        errors @ d_z[1:].mT,
        _decay_gradient(d_z[1:], states[:-1], decay.shape[-1]),
        d_z[0].clone(),
    )


def _define_inter_chunk_solved() -> torch._ops.OpOverload:
    """Registers the recurrence with the solve inside and its backward, once in a process."""
    if not hasattr(torch.ops.nlc_spike, "inter_chunk_solved"):
        backward = torch.library.custom_op("nlc_spike::inter_chunk_solved_backward", _inter_chunk_solved_backward, mutates_args=())
        backward.register_fake(
            lambda y, x, decay, errors, states, inverse, d_errors, d_states: (
                inverse.new_empty(inverse.shape),
                torch.empty_like(errors),
                y.new_empty(y.shape),
                x.new_empty(x.shape),
                decay.new_empty(decay.shape),
                states.new_empty(states.shape[1:]),
            )
        )
        forward = torch.library.custom_op("nlc_spike::inter_chunk_solved", _inter_chunk_solved_forward, mutates_args=())
        forward.register_fake(
            lambda a, u, y, x, decay, z0: (u.new_empty(u.shape), z0.new_empty(u.shape[0] + 1, *z0.shape), a.new_empty(a.shape))
        )
        forward.register_autograd(
            lambda ctx, d_errors, d_states, _: backward(*ctx.saved_tensors, d_errors, d_states),
            setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[2:5], *output),
        )
    return torch.ops.nlc_spike.inter_chunk_solved.default


_INTER_CHUNK_SOLVED = _define_inter_chunk_solved()


def inter_chunk_solved(a: Tensor, u: Tensor, y: Tensor, x: Tensor, decay: Tensor, z0: Tensor) -> tuple[Tensor, Tensor]:
    """Errors and chunk-start states of (I + a_i) e_i = u_i - y_i z_i, z_{i+1} = (decay_i kron I) z_i + x_i^T e_i.

    a [N, G, C, C] strictly lower, u [N, G, C, V], y and x [N, G, C, D], decay [N, G, n, n], z0 [G, D, V].
    The same as inter_chunk(unit_lower_solve(a, u), unit_lower_solve(a, y), ...), with fewer products.
    """
    errors, states, _ = _INTER_CHUNK_SOLVED(a, u, y, x, decay, z0)
    return errors, states


def _inter_chunk_read_forward(
    a: Tensor, u: Tensor, y: Tensor, x: Tensor, decay: Tensor, z0: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand(a.shape)
    inverse = torch.linalg.solve_triangular(a.mT, identity, upper=True, unitriangular=True).mT.contiguous()
    errors = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    reads = u.new_empty(*rows.shape[:-1], u.shape[-1])
    states = z0.new_empty(u.shape[0] + 1, *z0.shape)
    states[0] = z0
    state, residual = states[0], torch.empty_like(errors[0])
    given = (u, y, x.mT, decay, inverse, rows, errors, reads, states[1:])
    for u_i, y_i, xt_i, decay_i, inverse_i, rows_i, error, read, following in zip(*(t.unbind() for t in given), strict=True):
        torch.bmm(rows_i, state, out=read)
        torch.baddbmm(u_i, y_i, state, alpha=-1, out=residual)
        torch.bmm(inverse_i, residual, out=error)
        _advance(decay_i, state, following)
        following.baddbmm_(xt_i, error)
        state = following
    return reads, errors, state.clone(), states, inverse


def _inter_chunk_read_backward(
    y: Tensor,
    x: Tensor,
    decay: Tensor,
    rows: Tensor,
    errors: Tensor,
    states: Tensor,
    inverse: Tensor,
    d_reads: Tensor,
    d_errors: Tensor,
    d_final: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    d_a, d_u, d_y, d_x, d_decay, d_rows = (
        torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (inverse, errors, y, x, decay, rows)
    )
    groups, n = decay.shape[1], decay.shape[-1]
    d_z, d_error, scratch = d_final.clone(), torch.empty_like(errors[0]), torch.empty_like(d_final)
    for i in range(errors.shape[0] - 1, -1, -1):
        state_t, d_read = states[i].mT, d_reads[i]
        torch.bmm(d_read, state_t, out=d_rows[i])
        torch.bmm(errors[i], d_z.mT, out=d_x[i])
        d_decay[i] = (d_z.view(groups, n, 1, -1) * states[i].view(groups, 1, n, -1)).sum(-1)
        torch.baddbmm(d_errors[i], x[i], d_z, out=d_error)
        d_residual = torch.bmm(inverse[i].mT, d_error, out=d_u[i])
        d_a[i].baddbmm_(d_residual, errors[i].mT, beta=0, alpha=-1)  # beta 0: what d_a held is not read
        d_y[i].baddbmm_(d_residual, state_t, beta=0, alpha=-1)
        _advance(decay[i].mT, d_z, scratch)
        d_z, scratch = scratch, d_z
        d_z.baddbmm_(rows[i].mT, d_read)
        d_z.baddbmm_(y[i].mT, d_residual, alpha=-1)
    return d_a.tril_(-1), d_u, d_y, d_x, d_decay, d_z, d_rows


def _define_inter_chunk_read() -> torch._ops.OpOverload:
    """Registers the recurrence with solve and reads inside and its backward, once in a process."""
    if not hasattr(torch.ops.nlc_spike, "inter_chunk_read"):
        backward = torch.library.custom_op("nlc_spike::inter_chunk_read_backward", _inter_chunk_read_backward, mutates_args=())
        backward.register_fake(
            lambda y, x, decay, rows, errors, states, inverse, d_reads, d_errors, d_final: (
                *(t.new_empty(t.shape) for t in (inverse, errors, y, x, decay, d_final, rows)),
            )
        )
        forward = torch.library.custom_op("nlc_spike::inter_chunk_read", _inter_chunk_read_forward, mutates_args=())
        forward.register_fake(
            lambda a, u, y, x, decay, z0, rows: (
                u.new_empty(*rows.shape[:-1], u.shape[-1]),
                u.new_empty(u.shape),
                z0.new_empty(z0.shape),
                z0.new_empty(u.shape[0] + 1, *z0.shape),
                a.new_empty(a.shape),
            )
        )
        forward.register_autograd(
            lambda ctx, d_reads, d_errors, d_final, *_: backward(*ctx.saved_tensors, d_reads, d_errors, d_final),
            setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[2:5], inputs[6], output[1], *output[3:]),
        )
    return torch.ops.nlc_spike.inter_chunk_read.default


_INTER_CHUNK_READ = _define_inter_chunk_read()


def inter_chunk_read(a: Tensor, u: Tensor, y: Tensor, x: Tensor, decay: Tensor, z0: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reads rows_i z_i, errors and final state of (I + a_i) e_i = u_i - y_i z_i, z_{i+1} = (decay_i kron I) z_i + x_i^T e_i.

    a [N, G, C, C] strictly lower, u [N, G, C, V], y and x [N, G, C, D], decay [N, G, n, n], z0 [G, D, V], rows [N, G, R, D].
    Returns reads [N, G, R, V] (of the state at the start of the chunk only), errors [N, G, C, V], final state [G, D, V].
    """
    reads, errors, final, _, _ = _INTER_CHUNK_READ(a, u, y, x, decay, z0, rows)
    return reads, errors, final


__all__ = ["inter_chunk", "inter_chunk_read", "inter_chunk_solved", "segment_decay", "unit_lower_inverse", "unit_lower_solve"]
