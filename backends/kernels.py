"""Tensor kernels that generated modules contain: chunk-parallel forms of linear-rule memories.

Every function stands on torch alone, so that a generated module can hold a copy of it.
The equations are those of the chunk form: z_t = F_t z_{t-1} + b_t w_t e_t^T inside a chunk of C tokens, carried from chunk to chunk.
A name registered with torch is registered once in a process and its compiled callers are cached on disk: a kernel whose
meaning or layout changes must change its name.

Axes: N chunks, G independent memories (batch x heads), C tokens of a chunk, K key, V value,
      n states of a rule (memory, momentum, ...), D = n * K stacked key rows. The chunk axis comes first, so that one chunk is contiguous.
"""

import torch
from torch import Tensor


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


def _propagated_forward(gates: Tensor, columns: Tensor) -> Tensor:
    chunk, n = gates.shape[2], gates.shape[-1]
    F = gates.permute(2, 3, 4, 0, 1).unsqueeze(-1).contiguous()
    z = gates.new_zeros(chunk + 1, n, *gates.shape[:2], n + chunk)
    for i in range(n):
        z[0, i, ..., i] = 1
    for t in range(chunk):
        reached = z[t, :, ..., : n + t]
        for i in range(n):
            out = z[t + 1, i, ..., : n + t]
            torch.mul(reached[0], F[t, i, 0], out=out)
            for j in range(1, n):
                out.addcmul_(reached[j], F[t, i, j])
        z[t + 1, ..., n + t] = columns[:, :, t].movedim(-1, 0)
    return z


def _propagated_backward(gates: Tensor, z: Tensor, d_z: Tensor) -> tuple[Tensor, Tensor]:
    chunk, n = gates.shape[2], gates.shape[-1]
    F = gates.permute(2, 3, 4, 0, 1).unsqueeze(-1).contiguous()
    through = d_z.clone(memory_format=torch.contiguous_format)  # through all later tokens of the chunk
    for t in range(chunk - 1, -1, -1):
        for j in range(n):
            out = through[t, j, ..., : n + t]
            for i in range(n):
                out.addcmul_(through[t + 1, i, ..., : n + t], F[t, i, j])
    d_columns = torch.stack([through[t + 1, ..., n + t] for t in range(chunk)])
    d_gates = torch.stack([torch.stack([(through[1:, i] * z[:-1, j]).sum(-1) for j in range(n)], 1) for i in range(n)], 1)
    return d_gates.permute(3, 4, 0, 1, 2).contiguous(), d_columns.permute(2, 3, 0, 1).contiguous()


def _define_propagated() -> torch._ops.OpOverload:
    """Registers the propagation and its backward, once in a process."""
    if not hasattr(torch.ops.nlc, "propagated"):
        backward = torch.library.custom_op("nlc::propagated_backward", _propagated_backward, mutates_args=())
        backward.register_fake(lambda gates, z, d_z: (gates.new_empty(gates.shape), gates.new_empty(gates.shape[:-1])))
        forward = torch.library.custom_op("nlc::propagated", _propagated_forward, mutates_args=())
        forward.register_fake(
            lambda gates, columns: gates.new_empty(gates.shape[2] + 1, gates.shape[3], *gates.shape[:2], gates.shape[3] + gates.shape[2])
        )
        forward.register_autograd(
            lambda ctx, d_z: backward(*ctx.saved_tensors, d_z),
            setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0], output),
        )
    return torch.ops.nlc.propagated.default


_PROPAGATED = _define_propagated()


def propagated(gates: Tensor, columns: Tensor) -> Tensor:
    """What each token of a chunk still sees of the chunk's start and of every write before it, through gate matrices.

    gates F [N, G, C, n, n], columns b [N, G, C, n]. Returns Z [N, G, C + 1, n, n + C]: after t tokens Z_t is
        [.., :n]      F_t .. F_1
        [.., n + s]   F_t .. F_{s+1} b_s for s <= t, else 0
    Only products of gates, one token after the other: gates may be zero or negative.
    """
    z: Tensor = _PROPAGATED(gates, columns)
    return z.permute(2, 3, 0, 1, 4)


def _advance(decay: Tensor, state: Tensor, out: Tensor) -> None:
    """out = (decay kron I) state, for decay [G, n, n] and states [G, n * K, V]."""
    n = decay.shape[-1]
    if n == 1:
        torch.mul(state, decay, out=out)
        return
    parts, outs, gate = state.unflatten(1, (n, -1)).flatten(2), out.view(out.shape[0], n, -1), decay.unsqueeze(-1)
    torch.mul(parts[:, :1], gate[:, :, 0], out=outs)
    for j in range(1, n):
        outs.addcmul_(parts[:, j : j + 1], gate[:, :, j])


def _decay_gradient(d_after: Tensor, before: Tensor, out: Tensor) -> None:
    """out [G, n, n] = the products <d_after_i, before_j> of the states [G, n * K, V] around one chunk."""
    n = out.shape[-1]
    late, early = d_after.unflatten(1, (n, -1)).flatten(2), before.unflatten(1, (n, -1)).flatten(2)
    for i in range(n):
        for j in range(n):
            torch.sum(late[:, i] * early[:, j], 1, out=out[:, i, j])


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
    d_decay = decay.new_empty(decay.shape)  # contiguous whatever the decay is, as the fake operator says
    for i in range(decay.shape[0]):
        _decay_gradient(d_z[i + 1], states[i], d_decay[i])
    return d_z[1:].clone(), d_decay, d_z[0].clone()


def _define_inter_chunk_free() -> torch._ops.OpOverload:
    """Registers the recurrence without errors and its backward, once in a process."""
    if not hasattr(torch.ops.nlc, "inter_chunk_free_2"):
        backward = torch.library.custom_op("nlc::inter_chunk_free_backward_2", _inter_chunk_free_backward, mutates_args=())
        backward.register_fake(
            lambda decay, states, d_states: (
                states.new_empty(decay.shape[0], *states.shape[1:]),
                decay.new_empty(decay.shape),
                states.new_empty(states.shape[1:]),
            )
        )
        forward = torch.library.custom_op("nlc::inter_chunk_free_2", _inter_chunk_free_forward, mutates_args=())
        forward.register_fake(lambda d, decay, z0: z0.new_empty(d.shape[0] + 1, *z0.shape))
        forward.register_autograd(
            lambda ctx, d_states: backward(*ctx.saved_tensors, d_states),
            setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[1], output),
        )
    return torch.ops.nlc.inter_chunk_free_2.default


_INTER_CHUNK_FREE = _define_inter_chunk_free()


def inter_chunk_free(d: Tensor, decay: Tensor | None, z0: Tensor) -> Tensor:
    """Chunk-start states [N + 1, G, D, V] of z_{i+1} = (decay_i kron I) z_i + d_i; a decay of None is all ones.

    d [N, G, D, V], decay [N, G, n, n], z0 [G, D, V].
    """
    if decay is None:
        return torch.cat([z0.unsqueeze(0), d]).cumsum(0)
    states: Tensor = _INTER_CHUNK_FREE(d, decay, z0)
    return states


def _sweep_forward(
    scores: Tensor, v: Tensor, rows: Tensor, x: Tensor, decay: Tensor, z0: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    chunk = v.shape[2]
    reads = scores.shape[2] - chunk
    # A row-major lower matrix is a column-major upper one: passed as such, the library makes no copy of it.
    identity = torch.eye(chunk, dtype=v.dtype, device=v.device).expand(*v.shape[:2], chunk, chunk)
    inverse = torch.linalg.solve_triangular(scores[:, :, reads:].mT, identity, upper=True, unitriangular=True).mT.contiguous()
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
    return out, states[-1].clone(), errors, states, inverse


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
    reads = d_out.shape[2]
    d_scores, d_v, d_rows, d_x, d_decay = (torch.empty_like(y) for y in (scores, errors, rows, x, decay))
    d_z, scratch = d_last.clone(), torch.empty_like(d_last)
    d_seen, d_error = errors.new_empty(errors.shape[1], scores.shape[2], errors.shape[3]), torch.empty_like(errors[0])
    d_read, d_probed = d_seen[:, :reads], d_seen[:, reads:]
    given = (scores[:, :, :reads].mT, rows.mT, x, decay, errors, errors.mT, states[:-1], inverse.mT, d_out)
    made = (d_scores, d_v, d_rows, d_x, d_decay)
    for step in reversed(list(zip(*(part.unbind() for part in (*given, *made)), strict=True))):
        score_t, row_t, x_i, decay_i, error, error_t, state, inverse_t, d_out_i, d_score, d_v_i, d_row, d_x_i, d_decay_i = step
        torch.bmm(error, d_z.mT, out=d_x_i)
        _decay_gradient(d_z, state, d_decay_i)
        torch.bmm(score_t, d_out_i, out=d_error)
        d_error.baddbmm_(x_i, d_z)
        torch.bmm(inverse_t, d_error, out=d_v_i)
        d_read.copy_(d_out_i)
        torch.neg(d_v_i, out=d_probed)
        torch.bmm(d_seen, error_t, out=d_score)
        torch.bmm(d_seen, state.mT, out=d_row)
        _advance(decay_i.mT, d_z, scratch)
        d_z, scratch = scratch, d_z
        d_z.baddbmm_(row_t, d_seen)
    d_scores[:, :, reads:].tril_(-1)  # a probe does not see the write of its own token
    return d_scores, d_v, d_rows, d_x, d_decay, d_z


def _define_sweep() -> torch._ops.OpOverload:
    """Registers the sweep and its backward, once in a process."""
    if not hasattr(torch.ops.nlc, "chunk_sweep_2"):
        backward = torch.library.custom_op("nlc::chunk_sweep_backward_2", _sweep_backward, mutates_args=())
        backward.register_fake(
            lambda scores, rows, x, decay, errors, states, inverse, d_out, d_last: (
                *(torch.empty_like(y) for y in (scores, errors, rows, x, decay)),
                torch.empty_like(d_last),
            )
        )
        forward = torch.library.custom_op("nlc::chunk_sweep_2", _sweep_forward, mutates_args=())
        forward.register_fake(
            lambda scores, v, rows, x, decay, z0: (
                v.new_empty(*v.shape[:2], scores.shape[2] - v.shape[2], v.shape[3]),
                z0.new_empty(z0.shape),
                v.new_empty(v.shape),
                z0.new_empty(v.shape[0] + 1, *z0.shape),
                v.new_empty(*v.shape[:2], v.shape[2], v.shape[2]),
            )
        )
        forward.register_autograd(_sweep_gradients, setup_context=_sweep_context)
    return torch.ops.nlc.chunk_sweep_2.default


def _sweep_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    scores, _, rows, x, decay, _ = inputs
    ctx.save_for_backward(scores, rows, x, decay, *output[2:])


def _sweep_gradients(ctx, d_out, d_last, *_):  # type: ignore[no-untyped-def]
    return torch.ops.nlc.chunk_sweep_backward_2.default(*ctx.saved_tensors, d_out.contiguous(), d_last.contiguous())


_SWEEP = _define_sweep()


def sweep(scores: Tensor, v: Tensor, rows: Tensor, x: Tensor, decay: Tensor, z0: Tensor) -> tuple[Tensor, Tensor]:
    """All chunks of a memory whose errors see its state, and what is read from it.

        (I + A_i) e_i = v_i - Y_i z_i ;  o_i = Q_i z_i + B_i e_i ;  z_{i+1} = (decay_i kron I) z_i + x_i^T e_i

    scores [N, G, R + C, C] holds B (R read rows) above A (C rows, strictly lower; what is above its diagonal is not read),
    rows [N, G, R + C, D] holds Q above Y, v [N, G, C, V], x [N, G, C, D], decay [N, G, n, n], z0 [G, D, V].
    Returns o [N, G, R, V] and the last state [G, D, V].
    """
    out, last, *_ = _SWEEP(scores, v, rows, x, decay, z0)
    return out, last
