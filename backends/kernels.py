"""Tensor kernels that generated modules contain: chunk-parallel forms of linear-rule memories.

Every function stands on torch alone, so that a generated module can hold a copy of it.
The equations are those of the chunk form: z_t = F_t z_{t-1} + G_t w_t e_t^T inside a chunk of C tokens, carried from chunk to chunk.

Axes: N chunks, G independent memories (batch x heads), C writes of a chunk, K key, V value,
      n states of a rule (memory, momentum, ...), D = n * K stacked key rows. The chunk axis comes first, so that one chunk is contiguous.
"""

import torch
from torch import Tensor

BASE_BLOCK = 8  # triangular blocks of this size are inverted by row substitution, larger ones by merging pairs


# Gates


def segment_decay(log_keep: Tensor, inclusive: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Products of scalar gates between the tokens of a chunk, from their logarithms [..., C]; no gate may be zero.

    Returns
        between [..., C, C]  keep_t .. keep_{s+1} for s <= t, else 0   (exclusive: keep_{t-1} .. keep_{s+1} for s < t)
        from_start [..., C]  keep_t .. keep_1                          (exclusive: keep_{t-1} .. keep_1)
        to_end [..., C]      keep_C .. keep_{s+1}
        total [...]          keep_C .. keep_1
    A row that sees the state after the decay of its token is inclusive, a row that sees the old state is exclusive.
    """
    chunk, dtype = log_keep.shape[-1], log_keep.dtype
    # A difference of float32 sums loses eps * |sum|: sum in float64, cast the difference.
    through = log_keep.double().cumsum(-1)
    seen = through if inclusive else through - log_keep.double()
    hidden = torch.ones(chunk, chunk, dtype=torch.bool, device=log_keep.device).triu(1 if inclusive else 0)
    # Masked before exp: exp of a hidden positive difference may overflow, and then its gradient is not finite.
    between = (seen.unsqueeze(-1) - through.unsqueeze(-2)).to(dtype).masked_fill(hidden, float("-inf")).exp()
    end = through[..., -1:]
    return between, seen.to(dtype).exp(), (end - through).to(dtype).exp(), end.squeeze(-1).to(dtype).exp()


def row_times(row: Tensor, gate: Tensor) -> Tensor:
    """Row vectors times gate matrices: [..., n] and [..., n, n] -> [..., n]."""
    return row * gate[..., 0] if gate.shape[-1] == 1 else (row.unsqueeze(-1) * gate).sum(-2)


def column_times(gate: Tensor, column: Tensor) -> Tensor:
    """Gate matrices times column vectors: [..., n, n] and [..., n] -> [..., n]."""
    return column * gate[..., 0] if gate.shape[-1] == 1 else (gate * column.unsqueeze(-2)).sum(-1)


def responses(
    gates: Tensor,
    rows: list[Tensor],
    columns: list[Tensor],
    inclusive: list[bool],
    same: list[list[bool]] | None = None,
) -> tuple[list[list[Tensor]], list[Tensor], list[Tensor], Tensor]:
    """Responses of row vectors c_t to earlier column vectors G_s through gate matrices, by halving the chunk.

    gates [..., C, n, n]; rows c and columns G [..., C, n]; C a power of two. inclusive[i]: row kind i sees the gate of its own token.
    Returns
        between[i][j] [..., C, C]  c_t F_t .. F_{s+1} G_s for s < t    (exclusive: c_t F_{t-1} .. F_{s+1} G_s)
        from_start[i] [..., C, n]  c_t F_t .. F_1                      (exclusive: c_t F_{t-1} .. F_1)
        to_end[j] [..., C, n]      F_C .. F_{s+1} G_s
        total [..., n, n]          F_C .. F_1
    The diagonal of between[i][j] is c_t . G_t where same[i][j] holds (the row sees the write of its own token), else 0.
    No quotient and no logarithm: gates may be zero or negative.
    """
    lead, chunk, n = gates.shape[:-3], gates.shape[-3], gates.shape[-1]
    # Below: [..., blocks, tokens of a block, n]; blocks of one token at first, of two after one level, ...
    total = gates
    carried_rows = [(row_times(row, gates) if seen else row).unsqueeze(-2) for row, seen in zip(rows, inclusive, strict=True)]
    carried_columns = [column.unsqueeze(-2) for column in columns]
    zero = gates.new_zeros(*lead, chunk, 1, 1)
    between = [
        [(row * column).sum(-1)[..., None, None] if same is not None and same[i][j] else zero for j, column in enumerate(columns)]
        for i, row in enumerate(rows)
    ]
    size = 1
    while size < chunk:
        left, right = total[..., 0::2, :, :], total[..., 1::2, :, :]
        for i, row in enumerate(carried_rows):
            for j, column in enumerate(carried_columns):
                late, early = row[..., 1::2, :, :], column[..., 0::2, :, :]
                cross = (late.unsqueeze(-2) * early.unsqueeze(-3)).sum(-1)
                upper = torch.cat([between[i][j][..., 0::2, :, :], torch.zeros_like(cross)], -1)
                lower = torch.cat([cross, between[i][j][..., 1::2, :, :]], -1)
                between[i][j] = torch.cat([upper, lower], -2)
        carried_rows = [torch.cat([row[..., 0::2, :, :], row_times(row[..., 1::2, :, :], left.unsqueeze(-3))], -2) for row in carried_rows]
        carried_columns = [
            torch.cat([column_times(right.unsqueeze(-3), column[..., 0::2, :, :]), column[..., 1::2, :, :]], -2)
            for column in carried_columns
        ]
        total = right * left if n == 1 else (right.unsqueeze(-1) * left.unsqueeze(-3)).sum(-2)
        size *= 2
    return (
        [[block.squeeze(-3) for block in line] for line in between],
        [row.squeeze(-3) for row in carried_rows],
        [column.squeeze(-3) for column in carried_columns],
        total.squeeze(-3),
    )


# Errors of a chunk: a unit lower triangular system


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
    if not hasattr(torch.ops.nlc, "unit_lower_solve"):
        backward = torch.library.custom_op("nlc::unit_lower_solve_backward", _unit_lower_solve_backward, mutates_args=())
        backward.register_fake(lambda inverse, solution, d_solution: (torch.empty_like(inverse), torch.empty_like(solution)))
        forward = torch.library.custom_op("nlc::unit_lower_solve", _unit_lower_solve_forward, mutates_args=())
        forward.register_fake(lambda a, rhs: (rhs.new_empty(rhs.shape), a.new_empty(a.shape)))
        forward.register_autograd(
            lambda ctx, d_solution, _: backward(*ctx.saved_tensors, d_solution),
            setup_context=lambda ctx, inputs, output: ctx.save_for_backward(output[1], output[0]),
        )
    return torch.ops.nlc.unit_lower_solve.default


_UNIT_LOWER_SOLVE = _define_unit_lower_solve()


def unit_lower_solve(a: Tensor, rhs: Tensor) -> Tensor:
    """(I + a)^-1 rhs for strictly lower a [..., C, C] and rhs [..., C, V]; the backward reuses the inverse."""
    solution: Tensor = _UNIT_LOWER_SOLVE(a, rhs)[0]
    return solution


# The recurrence over chunks


def _advance(decay: Tensor, state: Tensor, out: Tensor) -> None:
    """out = (decay kron I) state, for decay [G, n, n] and states [G, n * K, V]."""
    n = decay.shape[-1]
    if n == 1:
        torch.mul(state, decay, out=out)
    else:
        torch.bmm(decay, state.unflatten(1, (n, -1)).flatten(2), out=out.view(out.shape[0], n, -1))


def _decay_gradient(d_after: Tensor, before: Tensor, n: int) -> Tensor:
    """Gradient of the decay of every chunk, from d_after and before [N, G, n * K, V]."""
    chunks, groups = before.shape[:2]
    return torch.bmm(d_after.reshape(chunks * groups, n, -1), before.reshape(chunks * groups, n, -1).mT).view(chunks, groups, n, n)


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
    if not hasattr(torch.ops.nlc, "inter_chunk"):
        backward = torch.library.custom_op("nlc::inter_chunk_backward", _inter_chunk_backward, mutates_args=())
        backward.register_fake(
            lambda y, x, decay, errors, states, d_errors, d_states: (
                torch.empty_like(errors),
                y.new_empty(y.shape),
                x.new_empty(x.shape),
                decay.new_empty(decay.shape),
                states.new_empty(states.shape[1:]),
            )
        )
        forward = torch.library.custom_op("nlc::inter_chunk", _inter_chunk_forward, mutates_args=())
        forward.register_fake(lambda e0, y, x, decay, z0: (e0.new_empty(e0.shape), z0.new_empty(e0.shape[0] + 1, *z0.shape)))
        forward.register_autograd(
            lambda ctx, d_errors, d_states: backward(*ctx.saved_tensors, d_errors, d_states),
            setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[1:4], *output),
        )
    return torch.ops.nlc.inter_chunk.default


_INTER_CHUNK = _define_inter_chunk()


def inter_chunk(e0: Tensor, y: Tensor, x: Tensor, decay: Tensor, z0: Tensor) -> tuple[Tensor, Tensor]:
    """Errors and chunk-start states of e_i = e0_i - y_i z_i, z_{i+1} = (decay_i kron I) z_i + x_i^T e_i.

    e0 [N, G, C, V], y and x [N, G, C, D], decay [N, G, n, n], z0 [G, D, V].
    Returns errors [N, G, C, V] and states [N + 1, G, D, V], the last of which is the final state.
    One operator whatever N is: the graph of a long sequence is as small as that of a short one.
    """
    errors, states = _INTER_CHUNK(e0, y, x, decay, z0)
    return errors, states


# The same recurrence with the triangular system inside: the inverse meets the V columns of the errors only,
# not the D columns of the rows, in the forward and in the backward.


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
    if not hasattr(torch.ops.nlc, "inter_chunk_solved"):
        backward = torch.library.custom_op("nlc::inter_chunk_solved_backward", _inter_chunk_solved_backward, mutates_args=())
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
        forward = torch.library.custom_op("nlc::inter_chunk_solved", _inter_chunk_solved_forward, mutates_args=())
        forward.register_fake(
            lambda a, u, y, x, decay, z0: (u.new_empty(u.shape), z0.new_empty(u.shape[0] + 1, *z0.shape), a.new_empty(a.shape))
        )
        forward.register_autograd(
            lambda ctx, d_errors, d_states, _: backward(*ctx.saved_tensors, d_errors, d_states),
            setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[2:5], *output),
        )
    return torch.ops.nlc.inter_chunk_solved.default


_INTER_CHUNK_SOLVED = _define_inter_chunk_solved()


def inter_chunk_solved(a: Tensor, u: Tensor, y: Tensor, x: Tensor, decay: Tensor, z0: Tensor) -> tuple[Tensor, Tensor]:
    """Errors and chunk-start states of (I + a_i) e_i = u_i - y_i z_i, z_{i+1} = (decay_i kron I) z_i + x_i^T e_i.

    a [N, G, C, C] strictly lower, u [N, G, C, V], y and x [N, G, C, D], decay [N, G, n, n], z0 [G, D, V].
    The same as inter_chunk(unit_lower_solve(a, u), unit_lower_solve(a, y), ...), with fewer products.
    """
    errors, states, _ = _INTER_CHUNK_SOLVED(a, u, y, x, decay, z0)
    return errors, states


# The same with the reads inside: the states are no output, so the backward forms no gradient of all of them,
# and each chunk's products are taken while its tensors are in the cache.


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
    if not hasattr(torch.ops.nlc, "inter_chunk_read"):
        backward = torch.library.custom_op("nlc::inter_chunk_read_backward", _inter_chunk_read_backward, mutates_args=())
        backward.register_fake(
            lambda y, x, decay, rows, errors, states, inverse, d_reads, d_errors, d_final: (
                *(t.new_empty(t.shape) for t in (inverse, errors, y, x, decay, d_final, rows)),
            )
        )
        forward = torch.library.custom_op("nlc::inter_chunk_read", _inter_chunk_read_forward, mutates_args=())
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
    return torch.ops.nlc.inter_chunk_read.default


_INTER_CHUNK_READ = _define_inter_chunk_read()


def inter_chunk_read(a: Tensor, u: Tensor, y: Tensor, x: Tensor, decay: Tensor, z0: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reads rows_i z_i, errors and final state of (I + a_i) e_i = u_i - y_i z_i, z_{i+1} = (decay_i kron I) z_i + x_i^T e_i.

    a [N, G, C, C] strictly lower, u [N, G, C, V], y and x [N, G, C, D], decay [N, G, n, n], z0 [G, D, V], rows [N, G, R, D].
    Returns reads [N, G, R, V] (of the state at the start of the chunk only), errors [N, G, C, V], final state [G, D, V].
    """
    reads, errors, final, _, _ = _INTER_CHUNK_READ(a, u, y, x, decay, z0, rows)
    return reads, errors, final


# The recurrence without errors


def _inter_chunk_free_forward(d: Tensor, decay: Tensor, z0: Tensor) -> Tensor:
    states = z0.new_empty(d.shape[0] + 1, *z0.shape)
    states[0] = z0
    for i in range(d.shape[0]):
        _advance(decay[i], states[i], states[i + 1])
        states[i + 1].add_(d[i])
    return states


def _inter_chunk_free_backward(decay: Tensor, states: Tensor, d_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    d_z = torch.empty_like(states)
    d_z[-1] = d_states[-1]
    for i in range(decay.shape[0] - 1, -1, -1):
        _advance(decay[i].mT, d_z[i + 1], d_z[i])
        d_z[i].add_(d_states[i])
    return d_z[1:].clone(), _decay_gradient(d_z[1:], states[:-1], decay.shape[-1]), d_z[0].clone()


def _define_inter_chunk_free() -> torch._ops.OpOverload:
    """Registers the recurrence without errors and its backward, once in a process."""
    if not hasattr(torch.ops.nlc, "inter_chunk_free"):
        backward = torch.library.custom_op("nlc::inter_chunk_free_backward", _inter_chunk_free_backward, mutates_args=())
        backward.register_fake(
            lambda decay, states, d_states: (
                states.new_empty(decay.shape[0], *states.shape[1:]),
                decay.new_empty(decay.shape),
                states.new_empty(states.shape[1:]),
            )
        )
        forward = torch.library.custom_op("nlc::inter_chunk_free", _inter_chunk_free_forward, mutates_args=())
        forward.register_fake(lambda d, decay, z0: z0.new_empty(d.shape[0] + 1, *z0.shape))
        forward.register_autograd(
            lambda ctx, d_states: backward(*ctx.saved_tensors, d_states),
            setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[1], output),
        )
    return torch.ops.nlc.inter_chunk_free.default


_INTER_CHUNK_FREE = _define_inter_chunk_free()


def inter_chunk_free(d: Tensor, decay: Tensor | None, z0: Tensor) -> Tensor:
    """Chunk-start states [N + 1, G, D, V] of z_{i+1} = (decay_i kron I) z_i + d_i; a decay of None is all ones.

    d [N, G, D, V], decay [N, G, n, n], z0 [G, D, V].
    """
    if decay is None:
        return torch.cat([z0.unsqueeze(0), d]).cumsum(0)
    states: Tensor = _INTER_CHUNK_FREE(d, decay, z0)
    return states


# The whole sweep in one operator: scores applied, states read and carried while a chunk is in the cache


def _sweep_forward(scores: Tensor, v: Tensor, rows: Tensor, x: Tensor, decay: Tensor, z0: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    chunk = v.shape[2]
    reads = scores.shape[2] - chunk
    # A row-major lower matrix is a column-major upper one: passed as such, the library makes no copy of it.
    identity = torch.eye(chunk, dtype=v.dtype, device=v.device).expand(*v.shape[:2], chunk, chunk)
    inverse = torch.linalg.solve_triangular(scores[:, :, reads:].mT, identity, upper=True, unitriangular=True).mT
    out, errors = v.new_empty(*v.shape[:2], reads, v.shape[3]), torch.empty(v.shape, dtype=v.dtype, device=v.device)
    states = z0.new_empty(v.shape[0] + 1, *z0.shape)
    states[0] = z0
    seen, residual = v.new_empty(v.shape[1], scores.shape[2], v.shape[3]), torch.empty_like(errors[0])
    read, probed = seen[:, :reads], seen[:, reads:]
    state = states[0]
    parts = (scores[:, :, :reads], v, rows, x.mT, decay, inverse, out, errors, states[1:])
    for score, v_i, rows_i, xt_i, decay_i, inverse_i, out_i, error, following in zip(*(part.unbind() for part in parts), strict=True):
        torch.bmm(rows_i, state, out=seen)
        torch.sub(v_i, probed, out=residual)
        torch.bmm(inverse_i, residual, out=error)
        torch.baddbmm(read, score, error, out=out_i)
        _advance(decay_i, state, following)
        following.baddbmm_(xt_i, error)
        state = following
    return out, errors, states, inverse


def _sweep_backward(
    scores: Tensor,
    rows: Tensor,
    x: Tensor,
    decay: Tensor,
    errors: Tensor,
    states: Tensor,
    inverse: Tensor,
    d_out: Tensor,
    d_last: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    reads, n = d_out.shape[2], decay.shape[-1]
    d_scores, d_v, d_rows, d_x, d_decay = (torch.empty_like(y) for y in (scores, errors, rows, x, decay))
    d_z, scratch = d_last.clone(), torch.empty_like(d_last)
    d_seen, d_error = errors.new_empty(errors.shape[1], scores.shape[2], errors.shape[3]), torch.empty_like(errors[0])
    d_read, d_probed = d_seen[:, :reads], d_seen[:, reads:]
    given = (scores[:, :, :reads].mT, rows.mT, x, decay, errors, errors.mT, states[:-1], inverse.mT, d_out)
    made = (d_scores, d_v, d_rows, d_x, d_decay)
    for step in reversed(list(zip(*(part.unbind() for part in (*given, *made)), strict=True))):
        score_t, row_t, x_i, decay_i, error, error_t, state, inverse_t, d_out_i, d_score, d_v_i, d_row, d_x_i, d_decay_i = step
        torch.bmm(error, d_z.mT, out=d_x_i)
        if n == 1:
            torch.sum(torch.mul(d_z, state, out=scratch), (1, 2), keepdim=True, out=d_decay_i)
        else:
            torch.bmm(d_z.view(d_z.shape[0], n, -1), state.reshape(d_z.shape[0], n, -1).mT, out=d_decay_i)
        torch.bmm(score_t, d_out_i, out=d_error)
        d_error.baddbmm_(x_i, d_z)
        torch.bmm(inverse_t, d_error, out=d_v_i)
        d_read.copy_(d_out_i)
        torch.neg(d_v_i, out=d_probed)
        torch.bmm(d_seen, error_t, out=d_score)
        torch.bmm(d_seen, state.mT, out=d_row)
        if n == 1:
            d_z.mul_(decay_i)
        else:
            _advance(decay_i.mT, d_z, scratch)
            d_z, scratch = scratch, d_z
        d_z.baddbmm_(row_t, d_seen)
    d_scores[:, :, reads:].tril_(-1)  # a probe does not see the write of its own token
    return d_scores, d_v, d_rows, d_x, d_decay, d_z


def _define_sweep() -> torch._ops.OpOverload:
    """Registers the sweep and its backward, once in a process."""
    if not hasattr(torch.ops.nlc, "sweep"):
        backward = torch.library.custom_op("nlc::sweep_backward", _sweep_backward, mutates_args=())
        backward.register_fake(
            lambda scores, rows, x, decay, errors, states, inverse, d_out, d_last: (
                *(torch.empty_like(y) for y in (scores, errors, rows, x, decay)),
                torch.empty_like(d_last),
            )
        )
        forward = torch.library.custom_op("nlc::sweep", _sweep_forward, mutates_args=())
        forward.register_fake(
            lambda scores, v, rows, x, decay, z0: (
                v.new_empty(*v.shape[:2], scores.shape[2] - v.shape[2], v.shape[3]),
                v.new_empty(v.shape),
                z0.new_empty(v.shape[0] + 1, *z0.shape),
                v.new_empty(*v.shape[:2], v.shape[2], v.shape[2]).mT,
            )
        )
        forward.register_autograd(_sweep_gradients, setup_context=_sweep_context)
    return torch.ops.nlc.sweep.default


def _sweep_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    scores, _, rows, x, decay, _ = inputs
    ctx.save_for_backward(scores, rows, x, decay, *output[1:])


def _sweep_gradients(ctx, d_out, _errors, d_states, _inverse):  # type: ignore[no-untyped-def]
    # only the last of the states is read outside
    return torch.ops.nlc.sweep_backward.default(*ctx.saved_tensors, d_out.contiguous(), d_states[-1].contiguous())


_SWEEP = _define_sweep()


def sweep(scores: Tensor, v: Tensor, rows: Tensor, x: Tensor, decay: Tensor, z0: Tensor) -> tuple[Tensor, Tensor]:
    """All chunks of a memory whose errors see its state, and what is read from it.

        (I + A_i) e_i = v_i - Y_i z_i ;  o_i = Q_i z_i + B_i e_i ;  z_{i+1} = (decay_i kron I) z_i + x_i^T e_i

    scores [N, G, R + C, C] holds B (R read rows) above A (C rows, strictly lower; what is above its diagonal is not read),
    rows [N, G, R + C, D] holds Q above Y, v [N, G, C, V], x [N, G, C, D], decay [N, G, n, n], z0 [G, D, V].
    Returns o [N, G, R, V] and the last state [G, D, V].
    """
    out, _, states, _ = _SWEEP(scores, v, rows, x, decay, z0)
    return out, states[-1]
