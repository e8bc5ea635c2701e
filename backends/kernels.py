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


class _Decayed(torch.autograd.Function):
    """Gradients of the gates from the products row . d row and column . d column of a token: none of the C x C matrix of decays.

    A row of token t carries exp(through_t), a column of token s exp(-through_s), the end of the chunk exp(through_C).
    """

    @staticmethod
    def forward(ctx, rows, w, log_keep, inclusive):  # type: ignore[no-untyped-def]
        chunk, dtype = w.shape[2], w.dtype
        # A difference of float32 sums loses eps * |sum|: sum in float64, cast the difference.
        through = log_keep.double().cumsum(-1)
        kinds = inclusive if len(set(inclusive)) > 1 else inclusive[:1] or (True,)  # equal kinds share their decays
        seen = torch.stack([through if kind else through - log_keep.double() for kind in kinds], 2)
        ones = torch.ones(chunk, chunk, dtype=torch.bool, device=w.device)
        hidden = torch.stack([ones.triu(1 if kind else 0) for kind in kinds])
        # Masked before exp: exp of a hidden positive difference may overflow, and then its gradient is not finite.
        between = (seen.unsqueeze(-1) - through[:, :, None, None]).to(dtype).masked_fill(hidden, float("-inf")).exp()
        end = through[..., -1:]
        from_start, to_end, total = (x.to(dtype).exp() for x in (seen, end - through, end))
        ctx.save_for_backward(rows, w, between, from_start, to_end, total)
        ctx.inclusive = inclusive
        scores = ((rows @ w.mT).unflatten(2, (-1, chunk)) * between).flatten(2, 3)
        carried = (rows.unflatten(2, (-1, chunk)) * from_start.unsqueeze(-1)).flatten(2, 3)
        return scores, carried, w * to_end.unsqueeze(-1), total.unsqueeze(-1)

    @staticmethod
    def backward(ctx, d_scores, d_carried, d_x, d_total):  # type: ignore[no-untyped-def]
        rows, w, between, from_start, to_end, total = ctx.saved_tensors
        chunk = w.shape[2]
        d_scores = (d_scores.unflatten(2, (-1, chunk)) * between).flatten(2, 3)
        d_rows = d_scores @ w + (d_carried.unflatten(2, (-1, chunk)) * from_start.unsqueeze(-1)).flatten(2, 3)
        d_x = d_x * to_end.unsqueeze(-1)
        d_w = d_scores.mT @ rows + d_x
        by_row = (rows * d_rows).sum(-1).unflatten(-1, (-1, chunk))
        d_through = by_row.sum(2) - (w * d_w).sum(-1)
        d_end = (w * d_x).sum((-2, -1)) + d_total.flatten(2).squeeze(-1) * total.squeeze(-1)
        d_log_keep = d_through.flip(-1).cumsum(-1).flip(-1) + d_end.unsqueeze(-1)
        for kind, products in zip(ctx.inclusive, by_row.unbind(2), strict=True):
            d_log_keep = d_log_keep if kind else d_log_keep - products
        return d_rows, d_w, d_log_keep, None


def decayed(rows: Tensor, w: Tensor, log_keep: Tensor, inclusive: tuple[bool, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Everything a chunk of a memory with one scalar gate needs, from the logarithms of the gates; no gate may be zero.

    rows [N, G, R * C, K] are R kinds of rows above each other, w [N, G, C, K] the written keys, log_keep [N, G, C].
    A kind is inclusive if its rows see the state after the decay and the write of their token, else they see the old state. Returns
        scores   [N, G, R * C, C]  rows_t . w_s keep_t .. keep_{s+1} for s <= t   (exclusive: keep_{t-1} .. keep_{s+1} for s < t), else 0
        carried  [N, G, R * C, K]  rows_t keep_t .. keep_1                        (exclusive: keep_{t-1} .. keep_1)
        x        [N, G, C, K]      w_s keep_C .. keep_{s+1}
        total    [N, G, 1, 1]      keep_C .. keep_1
    """
    made: tuple[Tensor, Tensor, Tensor, Tensor] = _Decayed.apply(rows, w, log_keep, inclusive)  # type: ignore[no-untyped-call]
    return made


def _compose(late: Tensor, early: Tensor, out: Tensor) -> None:
    """out[t] = late[t] early, for late [.., t, n, n, M], early [.., n, width, M] and out [.., t, n, width, M]."""
    torch.mul(late[..., 0, None, :], early[..., None, :1, :, :], out=out)
    for j in range(1, late.shape[-2]):
        out.addcmul_(late[..., j, None, :], early[..., None, j : j + 1, :, :])


def _compose_backward(late: Tensor, early: Tensor, d_out: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of late and early; `early` meets every token t, so its gradient is a sum over them."""
    n = late.shape[-2]
    d_late = torch.stack([(d_out * early[..., None, j : j + 1, :, :]).sum(-2) for j in range(n)], -2)
    d_early = torch.stack([(d_out * late[..., j, None, :]).sum((-4, -3)) for j in range(n)], -3)
    return d_late, d_early


def _blocks(z: Tensor, half: int) -> Tensor:
    """[pair, early or late, token, n, early or late, token of the write, M]: z [C + 1, n, C, M] inside pairs of blocks of `half` tokens."""
    return z[1:].unflatten(2, (-1, 2, half)).unflatten(0, (-1, 2, half)).diagonal(0, 0, 4).movedim(-1, 0)


def _propagated_forward(gates: Tensor, columns: Tensor, looks: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """seen [looks, C, n, M], between [looks, C, C, M], to_end [n, C, M] and total [n, n, M] of `propagated`, with M = N * G; the products
    since the start of blocks of 1, 2, 4 .. tokens [log C + 1, C, n, n, M]; z [C + 1, n, C, M], what a state sees of each write.

    Blocks of tokens are joined in pairs, so that log C steps of long vectors do what C steps of short ones would: what the late block sees
    of the early one is its own product times what the early one ended with.
    """
    chunk, n = gates.shape[2:4]
    levels = gates.new_empty(chunk.bit_length(), chunk, n, n, gates.shape[0] * gates.shape[1])
    levels[0] = gates.flatten(0, 1).permute(1, 2, 3, 0)
    z = gates.new_empty(chunk + 1, n, chunk, levels.shape[-1])
    z[0] = 0
    z[1:].diagonal(0, 0, 2).copy_(columns.flatten(0, 1).permute(2, 0, 1))
    for level in range(chunk.bit_length() - 1):
        old, new = (x.unflatten(0, (-1, 2, 1 << level)) for x in (levels[level], levels[level + 1]))
        blocks = _blocks(z, 1 << level)
        blocks[:, 0, :, :, 1] = 0
        new[:, 0] = old[:, 0]
        _compose(old[:, 1], old[:, 0, -1], new[:, 1])
        _compose(old[:, 1], blocks[:, 0, -1, :, 0], blocks[:, 1, :, :, 0])
    start = torch.eye(n, dtype=gates.dtype, device=gates.device).unsqueeze(-1).expand(n, n, z.shape[-1])
    products = torch.cat([start.unsqueeze(0), levels[-1]])
    seen, between = (x.new_empty(len(looks), chunk, *x.shape[2:]) for x in (products, z))
    for i, (state, old) in enumerate(divmod(look, 2) for look in looks):
        seen[i], between[i] = products[1 - old : chunk + 1 - old, state], z[1 - old : chunk + 1 - old, state]
    return seen, between, z[-1].clone(), products[-1].clone(), levels, z


def _propagated_backward(
    levels: Tensor, z: Tensor, looks: list[int], d_seen: Tensor, d_between: Tensor, d_to_end: Tensor, d_total: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of gates [C, n, n, M] and columns [n, M, C]."""
    chunk, n = levels.shape[1:3]
    d_products, d_z = z.new_zeros(chunk + 1, n, n, z.shape[-1]), torch.empty_like(z)
    for state in range(n):
        d_z[1:, state] = d_between[looks.index(2 * state)] if 2 * state in looks else 0
        d_z[0, state] = 0
    for i, (state, old) in enumerate(divmod(look, 2) for look in looks):
        d_products[1 - old : chunk + 1 - old, state] += d_seen[i]
        if old:
            d_z[:-1, state] += d_between[i]
    d_z[-1] += d_to_end
    d_products[-1] += d_total
    d_products = d_products[1:]
    for level in range(levels.shape[0] - 2, -1, -1):
        old, d_old = (x.unflatten(0, (-1, 2, 1 << level)) for x in (levels[level], d_products))
        blocks, d_blocks = _blocks(z, 1 << level), _blocks(d_z, 1 << level)
        d_late, d_early = _compose_backward(old[:, 1], blocks[:, 0, -1, :, 0], d_blocks[:, 1, :, :, 0])
        d_blocks[:, 0, -1, :, 0] += d_early
        d_late_too, d_early = _compose_backward(old[:, 1], old[:, 0, -1], d_old[:, 1])
        d_old[:, 0, -1] += d_early
        torch.add(d_late, d_late_too, out=d_old[:, 1])
    return d_products.contiguous(), d_z[1:].diagonal(0, 0, 2).contiguous()


def _define_propagated() -> torch._ops.OpOverload:
    """Registers the propagation and its backward, once in a process."""
    if not hasattr(torch.ops.nlc, "propagated_3"):
        backward = torch.library.custom_op("nlc::propagated_backward_3", _propagated_backward, mutates_args=())
        backward.register_fake(lambda levels, z, *_: (z.new_empty(levels.shape[1:]), z.new_empty(z.shape[1], z.shape[3], z.shape[2])))
        forward = torch.library.custom_op("nlc::propagated_3", _propagated_forward, mutates_args=())
        forward.register_fake(_propagated_shapes)
        forward.register_autograd(_propagated_gradients, setup_context=_propagated_context)
    return torch.ops.nlc.propagated_3.default


def _propagated_shapes(gates, columns, looks):  # type: ignore[no-untyped-def]
    (C, n), L, M = gates.shape[2:4], len(looks), gates.shape[0] * gates.shape[1]
    shapes = ((L, C, n, M), (L, C, C, M), (n, C, M), (n, n, M), (C.bit_length(), C, n, n, M), (C + 1, n, C, M))
    return tuple(gates.new_empty(shape) for shape in shapes)


def _propagated_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.looks, ctx.copies = inputs[2], inputs[0].shape[:2]
    ctx.save_for_backward(*output[4:])


def _propagated_gradients(ctx, *gradients):  # type: ignore[no-untyped-def]
    seen = (x.contiguous() for x in gradients[:4])
    d_gates, d_columns = torch.ops.nlc.propagated_backward_3.default(*ctx.saved_tensors, ctx.looks, *seen)
    return d_gates.permute(3, 0, 1, 2).unflatten(0, ctx.copies), d_columns.permute(1, 2, 0).unflatten(0, ctx.copies), None


_PROPAGATED = _define_propagated()


class _Products(torch.autograd.Function):
    """E [.., C + 1, C + 1] of gates f [.., C]: E_ts = f_t .. f_{s+1} for s <= t, else 0."""

    @staticmethod
    def forward(ctx, gates):  # type: ignore[no-untyped-def]
        chunk = gates.shape[-1]
        earlier = torch.ones(chunk, chunk + 1, dtype=torch.bool, device=gates.device).tril()
        made = torch.where(earlier, gates.unsqueeze(-1), 1.0).cumprod(-2).tril(1)
        first = torch.zeros_like(made[..., :1, :])
        first[..., 0] = 1
        products = torch.cat([first, made], -2)
        ctx.save_for_backward(products)
        return products

    @staticmethod
    def backward(ctx, given):  # type: ignore[no-untyped-def]
        """d f_r, the sum over t and s of given_ts E_tr E_{r-1, s}: no quotients here either."""
        (products,) = ctx.saved_tensors
        return (products[..., 1:] * (given @ products.mT)[..., :-1]).sum(-2)


def propagated(gates: Tensor, columns: Tensor, looks: list[tuple[int, bool]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What each token of a chunk still sees of the chunk's start and of every write before it, through gate matrices.

    gates F [N, G, C, n, n], columns b [N, G, C, n], C a power of two. A look (i, new) is a view of state i after the token, or (not new)
    before it: t' = t or t - 1; looks differ. Returns
        seen     [looks, N, G, C, n]   (F_t' .. F_1)[i]
        between  [looks, N, G, C, C]   (F_t' .. F_{s+1} b_s)[i] for s <= t', else 0
        to_end   [N, G, C, n]          F_C .. F_{s+1} b_s
        total    [N, G, n, n]          F_C .. F_1
    Only products of gates, no quotients: gates may be zero or negative.
    """
    if gates.shape[-1] == 1:
        chunk, products = gates.shape[2], _Products.apply(gates[..., 0, 0])  # type: ignore[no-untyped-call]
        writes = products[..., 1:] * columns[..., 0].unsqueeze(-2)
        rows = [slice(int(new), chunk + int(new)) for _, new in looks]
        seen, between = (
            torch.stack([x[..., row, :] for row in rows]) if rows else x[None, :, :, 1:][:0] for x in (products[..., :1], writes)
        )
        return seen, between, writes[..., -1, :, None], products[..., -1:, :1]
    seen, between, to_end, total, _, _ = _PROPAGATED(gates, columns, [2 * i + (not new) for i, new in looks])
    seen, between, total = (x.movedim(-1, -3).unflatten(-3, gates.shape[:2]) for x in (seen, between, total))
    return seen, between, to_end.permute(2, 1, 0).unflatten(0, gates.shape[:2]), total


def _by_state(x: Tensor, n: int) -> Tensor:
    """[.., n * K, V] -> [.., n, K * V]: the states of a rule as rows."""
    return x.unflatten(-2, (n, -1)).flatten(-2)


def _advance(decay: Tensor, states: Tensor, out: Tensor) -> None:
    """out = decay @ states, for states by row [G, n, K * V] and decay [G, n, n], or [G, n, n, K] where channels differ."""
    if decay.dim() == 4:
        n, channels = decay.shape[2:]
        old, new = (x.unflatten(2, (channels, -1)) for x in (states, out))
        for i in range(n):
            torch.mul(old[:, 0], decay[:, i, 0].unsqueeze(-1), out=new[:, i])
            for j in range(1, n):
                new[:, i].addcmul_(old[:, j], decay[:, i, j].unsqueeze(-1))
    elif decay.shape[-1] == 1:
        torch.mul(states, decay, out=out)
    else:
        torch.bmm(decay, states, out=out)


def _transposed(decay: Tensor) -> Tensor:
    """The gate matrices of the way back."""
    return decay.transpose(2, 3)


def _decay_gradient(d_states: Tensor, states: Tensor, like: Tensor) -> Tensor:
    """d decay, shaped as `like`, of states' = decay states, for states by row [.., n, K * V]."""
    if like.dim() < d_states.dim() + 1:
        return d_states @ states.mT
    rows, columns = (x.unflatten(-1, (like.shape[-1], -1)) for x in (d_states, states))
    return torch.stack([(row.unsqueeze(-3) * columns).sum(-1) for row in rows.unbind(-3)], -3)


def _inter_chunk_free_forward(d: Tensor, decay: Tensor, z0: Tensor) -> Tensor:
    states = z0.new_empty(d.shape[0] + 1, *z0.shape)
    states[0] = z0
    rows, writes = (_by_state(x, decay.shape[2]).unbind() for x in (states, d))
    for i, (decay_i, write) in enumerate(zip(decay.unbind(), writes, strict=True)):
        _advance(decay_i, rows[i], rows[i + 1])
        rows[i + 1].add_(write)
    return states


def _inter_chunk_free_backward(decay: Tensor, states: Tensor, d_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = decay.shape[2]
    d_z = torch.empty_like(states)
    d_z[-1] = d_states[-1]
    rows, given, back = _by_state(d_z, n), _by_state(d_states, n), _transposed(decay)
    for i in range(decay.shape[0] - 1, -1, -1):
        _advance(back[i], rows[i + 1], rows[i])
        rows[i].add_(given[i])
    d_decay = _decay_gradient(rows[1:], _by_state(states[:-1], n), decay)
    return d_z[1:].clone(), d_decay, d_z[0].clone()


def _define_inter_chunk_free() -> torch._ops.OpOverload:
    """Registers the recurrence without errors and its backward, once in a process."""
    if not hasattr(torch.ops.nlc, "inter_chunk_free_4"):
        backward = torch.library.custom_op("nlc::inter_chunk_free_backward_4", _inter_chunk_free_backward, mutates_args=())
        backward.register_fake(
            lambda decay, states, d_states: (
                states.new_empty(decay.shape[0], *states.shape[1:]),
                decay.new_empty(decay.shape),
                states.new_empty(states.shape[1:]),
            )
        )
        forward = torch.library.custom_op("nlc::inter_chunk_free_4", _inter_chunk_free_forward, mutates_args=())
        forward.register_fake(lambda d, decay, z0: z0.new_empty(d.shape[0] + 1, *z0.shape))
        forward.register_autograd(
            lambda ctx, d_states: backward(*ctx.saved_tensors, d_states),
            setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[1], output),
        )
    return torch.ops.nlc.inter_chunk_free_4.default


_INTER_CHUNK_FREE = _define_inter_chunk_free()


def _running_sum_forward(d: Tensor, z0: Tensor) -> Tensor:
    states = z0.new_empty(d.shape[0] + 1, *z0.shape)
    states[0] = z0
    rows = states.unbind()
    for i, write in enumerate(d.unbind()):
        torch.add(rows[i], write, out=rows[i + 1])
    return states


def _running_sum_backward(d_states: Tensor) -> tuple[Tensor, Tensor]:
    d_d = d_states.new_empty(d_states.shape[0] - 1, *d_states.shape[1:])
    rows, given = d_d.unbind(), d_states.unbind()
    rows[-1].copy_(given[-1])
    for i in range(len(rows) - 1, 0, -1):
        torch.add(given[i], rows[i], out=rows[i - 1])
    return d_d, given[0] + rows[0]


def _define_running_sum() -> torch._ops.OpOverload:
    """Registers the recurrence without errors and decay, once in a process: one pass over the states; a cumulative sum needs three."""
    if not hasattr(torch.ops.nlc, "running_sum"):
        backward = torch.library.custom_op("nlc::running_sum_backward", _running_sum_backward, mutates_args=())
        backward.register_fake(
            lambda d_states: (d_states.new_empty(d_states.shape[0] - 1, *d_states.shape[1:]), d_states.new_empty(d_states.shape[1:]))
        )
        forward = torch.library.custom_op("nlc::running_sum", _running_sum_forward, mutates_args=())
        forward.register_fake(lambda d, z0: z0.new_empty(d.shape[0] + 1, *z0.shape))
        forward.register_autograd(lambda ctx, d_states: backward(d_states))
    return torch.ops.nlc.running_sum.default


_RUNNING_SUM = _define_running_sum()


def inter_chunk_free(d: Tensor, decay: Tensor | None, z0: Tensor) -> Tensor:
    """Chunk-start states [N + 1, G, D, V] of z_{i+1} = (decay_i kron I) z_i + d_i; a decay of None is all ones.

    d [N, G, D, V], decay [N, G, n, n], or [N, G, n, n, K] where channels differ, z0 [G, D, V].
    """
    if decay is None:
        sums: Tensor = _RUNNING_SUM(d, z0)
        return sums
    states: Tensor = _INTER_CHUNK_FREE(d, decay, z0)
    return states


def _sweep_forward(
    scores: Tensor, v: Tensor, rows: Tensor, x: Tensor, decay: Tensor, z0: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    chunk, n, decay = v.shape[2], decay.shape[2], decay.contiguous()
    reads = scores.shape[2] - chunk
    # A row-major lower matrix is a column-major upper one: passed as such, the library makes no copy of it.
    identity = torch.eye(chunk, dtype=v.dtype, device=v.device).expand(*v.shape[:2], chunk, chunk)
    inverse = torch.linalg.solve_triangular(scores[:, :, reads:].mT, identity, upper=True, unitriangular=True).mT.contiguous()
    out, errors = v.new_empty(*v.shape[:2], reads, v.shape[3]), torch.empty(v.shape, dtype=v.dtype, device=v.device)
    states = z0.new_empty(v.shape[0] + 1, *z0.shape)
    states[0] = z0
    seen, residual = v.new_empty(v.shape[1], scores.shape[2], v.shape[3]), torch.empty_like(errors[0])
    read, probed = seen[:, :reads], seen[:, reads:]
    by_state = _by_state(states, n)
    parts = (scores[:, :, :reads], v, rows, x.mT, decay, inverse, out, errors, states[:-1], states[1:], by_state[:-1], by_state[1:])
    for step in zip(*(part.unbind() for part in parts), strict=True):
        score, v_i, rows_i, xt_i, decay_i, inverse_i, out_i, error, state, following, old, new = step
        torch.bmm(rows_i, state, out=seen)
        torch.sub(v_i, probed, out=residual)
        torch.bmm(inverse_i, residual, out=error)
        torch.baddbmm(read, score, error, out=out_i)
        _advance(decay_i, old, new)
        following.baddbmm_(xt_i, error)
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
    """Gradients of scores, v, rows, x, decay, z0. Those of scores also where a probe cannot see the write: not to be used there."""
    reads, n = d_out.shape[2], decay.shape[2]
    d_scores, d_v, d_rows, d_x = (torch.empty_like(y) for y in (scores, errors, rows, x))
    d_decay, decay = decay.new_empty(decay.shape), decay.contiguous()
    d_z, scratch = d_last.clone(), torch.empty_like(d_last)
    d_by_state, scratch_by_state = _by_state(d_z, n), _by_state(scratch, n)
    d_seen, d_error = errors.new_empty(errors.shape[1], scores.shape[2], errors.shape[3]), torch.empty_like(errors[0])
    d_read, d_probed = d_seen[:, :reads], d_seen[:, reads:]
    given = (scores[:, :, :reads].mT, rows.mT, x, _transposed(decay), errors, errors.mT, states[:-1].mT, _by_state(states[:-1], n))
    parts = (*given, inverse.mT, d_out, d_scores, d_v, d_rows, d_x, d_decay)
    for step in reversed(list(zip(*(part.unbind() for part in parts), strict=True))):
        score_t, row_t, x_i, decay_t, error, error_t, state_t, by_state, inverse_t, d_out_i, *made = step
        d_score, d_v_i, d_row, d_x_i, d_decay_i = made
        torch.bmm(error, d_z.mT, out=d_x_i)
        d_decay_i.copy_(_decay_gradient(d_by_state, by_state, d_decay_i))
        torch.bmm(score_t, d_out_i, out=d_error)
        d_error.baddbmm_(x_i, d_z)
        torch.bmm(inverse_t, d_error, out=d_v_i)
        d_read.copy_(d_out_i)
        torch.neg(d_v_i, out=d_probed)
        torch.bmm(d_seen, error_t, out=d_score)
        torch.bmm(d_seen, state_t, out=d_row)
        _advance(decay_t, d_by_state, scratch_by_state)
        d_z, d_by_state, scratch, scratch_by_state = scratch, scratch_by_state, d_z, d_by_state
        d_z.baddbmm_(row_t, d_seen)
    return d_scores, d_v, d_rows, d_x, d_decay, d_z


def _define_sweep() -> torch._ops.OpOverload:
    """Registers the sweep and its backward, once in a process."""
    if not hasattr(torch.ops.nlc, "chunk_sweep_4"):
        backward = torch.library.custom_op("nlc::chunk_sweep_backward_4", _sweep_backward, mutates_args=())
        backward.register_fake(
            lambda scores, rows, x, decay, errors, states, inverse, d_out, d_last: (
                *(torch.empty_like(y) for y in (scores, errors, rows, x)),
                decay.new_empty(decay.shape),
                torch.empty_like(d_last),
            )
        )
        forward = torch.library.custom_op("nlc::chunk_sweep_4", _sweep_forward, mutates_args=())
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
    return torch.ops.nlc.chunk_sweep_4.default


def _sweep_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    scores, _, rows, x, decay, _ = inputs
    ctx.save_for_backward(scores, rows, x, decay, *output[2:])


def _sweep_gradients(ctx, d_out, d_last, *_):  # type: ignore[no-untyped-def]
    scores, *others = ctx.saved_tensors
    d_scores, *gradients = torch.ops.nlc.chunk_sweep_backward_4.default(scores, *others, d_out.contiguous(), d_last.contiguous())
    token = torch.arange(scores.shape[3], device=scores.device)
    row = torch.arange(scores.shape[2], device=scores.device) - d_out.shape[2]
    unseen = (row >= 0).unsqueeze(1) & (token >= row.unsqueeze(1))  # a probe does not see the write of its own token
    return d_scores.masked_fill(unseen, 0), *gradients


_SWEEP = _define_sweep()


def sweep(scores: Tensor, v: Tensor, rows: Tensor, x: Tensor, decay: Tensor, z0: Tensor) -> tuple[Tensor, Tensor]:
    """All chunks of a memory whose errors see its state, and what is read from it.

        (I + A_i) e_i = v_i - Y_i z_i ;  o_i = Q_i z_i + B_i e_i ;  z_{i+1} = (decay_i kron I) z_i + x_i^T e_i

    scores [N, G, R + C, C] holds B (R read rows) above A (C rows, strictly lower; what is above its diagonal is not read),
    rows [N, G, R + C, D] holds Q above Y, v [N, G, C, V], x [N, G, C, D], z0 [G, D, V],
    decay [N, G, n, n], or [N, G, n, n, K] where channels differ. Returns o [N, G, R, V] and the last state [G, D, V].
    """
    out, last, *_ = _SWEEP(scores, v, rows, x, decay, z0)
    return out, last


def _seen_through(rows: Tensor, gates: Tensor) -> Tensor:
    """Rows [.., P, n, K] before gate matrices [.., n, n, K]: row F."""
    if gates.shape[-2] == 1:
        return rows * gates[..., :1, 0, None, :]
    return (rows.unsqueeze(-2) * gates.unsqueeze(-4)).sum(-3)


def _carried_on(gates: Tensor, columns: Tensor) -> Tensor:
    """Columns [.., W, n, K] after gate matrices [.., n, n, K]: F column."""
    if gates.shape[-2] == 1:
        return gates[..., :1, 0, None, :] * columns
    return (gates.unsqueeze(-4) * columns.unsqueeze(-3)).sum(-2)


def _joined_gates(late: Tensor, early: Tensor) -> Tensor:
    """The product of two gate matrices [.., n, n, K]."""
    if early.shape[-2] == 1:
        return late * early
    return (late.unsqueeze(-2) * early.unsqueeze(-4)).sum(-3)


def responses(
    rows: Tensor, columns: Tensor, gates: Tensor, after_gate: tuple[bool, ...], after_write: tuple[bool, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What each row sees of the writes of its chunk and of the chunk's start, through gates that may differ between channels.

    rows [N, G, C, P, n, K] are P rows a token, columns [N, G, C, W, n, K] W writes a token, gates F [N, G, C, n, n, K], C a power of two.
    A row sees the state before its token; `after_gate`: after the gate of its token; `after_write`: its writes too. Returns
        scores   [N, G, C, P, C, W]  row_t F_{t'} .. F_{s+1} column_s, t' = t or t - 1
        carried  [N, G, C, P, n * K]  row_t F_{t'} .. F_1
        x        [N, G, C, W, n * K]  F_C .. F_{s+1} column_s
        total    [N, G, n, n, K]      F_C .. F_1
    By halving: what the late half of a block sees of the early half is one product of rows carried back and columns carried on to the
    middle. Only products of gates, no quotients: gates may be zero or negative.
    """
    tokens, kinds, writes = rows.shape[2], rows.shape[3], columns.shape[3]
    own = rows.flatten(-2) @ columns.flatten(-2).mT
    scores = torch.stack([x if sees else torch.zeros_like(x) for x, sees in zip(own.unbind(3), after_write, strict=True)], 3)
    if all(after_gate):
        rows = _seen_through(rows, gates)
    elif any(after_gate):
        moved = [_seen_through(rows[:, :, :, i : i + 1], gates) if gate else rows[:, :, :, i : i + 1] for i, gate in enumerate(after_gate)]
        rows = torch.cat(moved, 3)
    rows, columns = rows.unsqueeze(3), columns.unsqueeze(3)  # [N, G, blocks, tokens of a block, ..]
    for _ in range(tokens.bit_length() - 1):
        (early_row, late_row), (early, late), (first, second), (early_score, late_score) = (
            x.unflatten(2, (-1, 2)).unbind(3) for x in (rows, columns, gates, scores)
        )
        between = late_row.flatten(3, 4).flatten(-2) @ early.flatten(3, 4).flatten(-2).mT
        upper = torch.cat([early_score, torch.zeros_like(between)], -1)
        scores = torch.cat([upper, torch.cat([between, late_score], -1)], -2)
        rows = torch.cat([early_row, _seen_through(late_row, first.unsqueeze(3))], 3)
        columns = torch.cat([_carried_on(second.unsqueeze(3), early), late], 3)
        gates = _joined_gates(second, first)
    scores = scores.squeeze(2).unflatten(3, (tokens, writes)).unflatten(2, (tokens, kinds))
    return scores, rows.squeeze(2).flatten(-2), columns.squeeze(2).flatten(-2), gates.squeeze(2)


def several(
    rows: Tensor,
    columns: Tensor,
    gates: Tensor,
    after_gate: tuple[bool, ...],
    after_write: tuple[bool, ...],
    targets: Tensor,
    errors: int,
    z0: Tensor,
) -> tuple[Tensor, Tensor]:
    """All chunks of a memory with several writes a token, or with gates that differ between key channels, and what is read from it.

    rows [N, G, C, R + D, n, K] hold R reads and the probes of the first D = `errors` writes, columns [N, G, C, W, n, K] and targets
    [N, G, C, W, V] the writes, the others of which do not see the state; the rest as in `responses`. z0 [G, n * K, V].
    Returns o [N, G, R * C, V], kinds of reads above each other, and the last state [G, n * K, V].
    """
    tokens, reads, free = rows.shape[2], rows.shape[3] - errors, columns.shape[3] - errors
    scores, rows, x, total = responses(rows, columns, gates, after_gate, after_write)
    scores, rows = (
        torch.cat([y[:, :, :, :reads].transpose(2, 3).flatten(2, 3), y[:, :, :, reads:].flatten(2, 3)], 2) for y in (scores, rows)
    )
    if not errors:
        u, x = targets.flatten(2, 3), x.flatten(2, 3)
        states = inter_chunk_free(x.mT @ u, total, z0)
        return rows @ states[:-1] + scores.flatten(3) @ u, states[-1]
    v, x_errors, by_errors = targets[:, :, :, :errors].flatten(2, 3), x[:, :, :, :errors].flatten(2, 3), scores[..., :errors].flatten(3)
    if not free:
        return sweep(by_errors, v, rows, x_errors, total, z0)
    # What the free writes put into the states is known beforehand; by linearity the errors are those of the rest.
    u, x_free = targets[:, :, :, errors:].flatten(2, 3), x[:, :, :, errors:].flatten(2, 3)
    states = inter_chunk_free(x_free.mT @ u, total, z0)
    seen = rows @ states[:-1] + scores[..., errors:].flatten(3) @ u
    count = reads * tokens
    out, last = sweep(by_errors, v - seen[:, :, count:], rows, x_errors, total, torch.zeros_like(z0))
    return out + seen[:, :, :count], last + states[-1]


def period_gates(
    rows: list[list[Tensor | float]], columns: list[Tensor | float], looks: list[tuple[int, bool]], like: Tensor, copies: int
) -> tuple[Tensor, ...]:
    """What `propagated` returns, for one period of T tokens of each row: gates and rates are numbers or [B, T, copies], like [B, T].

    A token beyond T keeps everything and writes nothing. seen [looks, B * copies, C, n], between [looks, B * copies, C, C],
    to_end [B * copies, C, n], total [B * copies, n, n], for the smallest power of two C that holds T.
    """
    B, T = like.shape
    padding = (1 << (T - 1).bit_length()) - T

    def padded(x: Tensor | float, fill: float) -> Tensor:
        whole = x.to(like.dtype).expand(B, T, copies) if isinstance(x, Tensor) else like.new_full((B, T, copies), x)
        if padding:
            whole = torch.cat([whole, like.new_full((B, padding, copies), fill)], 1)
        return whole.transpose(1, 2).flatten(0, 1).unsqueeze(0)

    gates = torch.stack([torch.stack([padded(x, float(i == j)) for j, x in enumerate(row)], -1) for i, row in enumerate(rows)], -2)
    seen, between, to_end, total = propagated(gates, torch.stack([padded(x, 0.0) for x in columns], -1), looks)
    # Not views: what a compiled function returns is then its own.
    return seen.squeeze(1).clone(), between.squeeze(1).clone(), to_end.squeeze(0).clone(), total.squeeze(0).clone()


def in_chunk(x: Tensor, gates: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """[B, T, G, D] -> [B * G, C, D], with zeros beyond T."""
    padding = gates[2].shape[1] - x.shape[1]
    whole = x.to(dtype) if padding == 0 else torch.cat([x.to(dtype), x.new_zeros((x.shape[0], padding, *x.shape[2:]), dtype=dtype)], 1)
    return whole.transpose(1, 2).flatten(0, 1)


def one_chunk(
    queries: list[Tensor],
    kinds: list[int],
    key: Tensor,
    u: Tensor,
    gates: tuple[Tensor, ...],
    states: list[Tensor],
    links: tuple[tuple[int, ...], ...],
    tokens: int,
) -> tuple[Tensor, ...]:
    """One chunk of a memory whose errors u [G, C, V] are known, with the gates of `period_gates`.

    queries [G, C, K] with, for each, the look of the gates it has; key [G, C, K]; states [B, H, K, V] with G = B * H; `links[i]` are the
    states that reach state i. Returns the answers [B, tokens, H, V], then the new states; none is a view.
    """
    seen, between, to_end, total = gates
    copies = (states[0].shape[0], -1)
    made = []
    for q, look in zip(queries, kinds, strict=True):
        answer = ((q @ key.mT * between[look]) @ u).unflatten(0, copies).transpose(1, 2)
        for j, z in enumerate(states):
            answer = answer + (seen[look, :, :, j : j + 1] * (q @ z.flatten(0, 1))).unflatten(0, copies).transpose(1, 2)
        made.append(answer if answer.shape[1] == tokens else answer[:, :tokens].clone())
    for i, sources in enumerate(links):
        state = ((key * to_end[:, :, i : i + 1]).mT @ u).unflatten(0, copies)
        for j in sources:
            state = state + total[:, i, j].unflatten(0, copies)[..., None, None] * states[j]
        made.append(state if sources else state.clone())
    return tuple(made)


def channel_gates(rows: list[list[Tensor | float]], like: Tensor) -> Tensor:
    """[N, G, C, n, n, K] from n rows of n gates: numbers, [N, G, C], or [N, G, C, K] as `like`."""
    return torch.stack([torch.stack([_each_channel(x, like) for x in row], -2) for row in rows], -3)


def in_states(coefficients: list[Tensor | float], vector: Tensor) -> Tensor:
    """[N, G, C, n, K]: a vector [N, G, C, K] times the coefficient of each state: a number, [N, G, C] or [N, G, C, K]."""
    return torch.stack([_each_channel(x, vector) * vector for x in coefficients], -2)


def _each_channel(x: Tensor | float, like: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        return like.new_full((), x).expand(like.shape)
    return (x.unsqueeze(-1) if x.dim() < like.dim() else x).expand(like.shape)


def _applied(x: Tensor, ridge: Tensor, w: Tensor, v: Tensor, within: Tensor, from_start: Tensor, states: Tensor) -> Tensor:
    """What the memory and the ridge make of x, for all tokens at once; no state of a token is formed."""
    return ridge * x + from_start * (x @ states) + ((x @ w.mT) * within) @ v


def _conjugate(q: Tensor, *system: Tensor) -> tuple[Tensor, bool]:
    """Conjugate gradients for all tokens at once, each until its residual is 16 units in the last place of q. False: some are not there."""
    x, r = torch.zeros_like(q), q
    p, rr = r, (r * r).sum(-1, keepdim=True)
    limit = rr * (16 * torch.finfo(q.dtype).eps) ** 2
    for step in range(2 * q.shape[-1]):
        if step % 4 == 0 and bool((rr <= limit).all()):
            return x, True
        seen = _applied(p, *system)
        curvature = (p * seen).sum(-1, keepdim=True)
        going = (rr > limit) & (curvature > 0)
        length = torch.where(going, rr / curvature, 0)
        x, r = x + length * p, r - length * seen
        new = (r * r).sum(-1, keepdim=True)
        p, rr = r + torch.where(going, new / rr, 0) * p, new
    return x, bool((rr <= limit).all())


def _eliminated(q: Tensor, ridge: Tensor, w: Tensor, v: Tensor, within: Tensor, from_start: Tensor, states: Tensor) -> Tensor:
    """The state of every token of a chunk is formed, and its system solved; one chunk after the other."""
    found = []
    for q_i, ridge_i, w_i, v_i, within_i, start_i, state in zip(q, ridge, w, v, within, from_start, states, strict=True):
        writes = (w_i.unsqueeze(-1) * v_i.unsqueeze(-2)).flatten(-2)
        seen = (within_i @ writes).unflatten(-1, state.shape[-2:]) + start_i.unsqueeze(-1) * state.unsqueeze(1)
        found.append(solved_now(q_i, ridge_i, seen))
    return torch.stack(found)


def solved_now(q: Tensor, ridge: Tensor, state: Tensor) -> Tensor:
    """The x with x @ state + ridge * x = q, for q and ridge [.., K] and state [.., K, K]. A singular system has no finite answer."""
    x, _ = torch.linalg.solve_ex(state.mT + torch.diag_embed(ridge), q.unsqueeze(-1))
    return x.squeeze(-1)


def _solved_forward(
    q: Tensor, ridge: Tensor, w: Tensor, v: Tensor, within: Tensor, from_start: Tensor, states: Tensor, iterate: bool
) -> Tensor:
    system = (ridge, w, v, within, from_start, states)
    x, done = _conjugate(q, *system) if iterate else (q, False)
    return x if done else _eliminated(q, *system)


def _solved_backward(
    d_x: Tensor, x: Tensor, ridge: Tensor, w: Tensor, v: Tensor, within: Tensor, from_start: Tensor, states: Tensor, iterate: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The transposed system for the cotangent gives y; the rest is the slope of -y . (A x) at this x."""
    y = _solved_forward(d_x, ridge, v, w, within, from_start, states.mT, iterate)
    by_key, by_value = x @ w.mT, y @ v.mT
    d_w, d_v = -(by_value * within).mT @ x, -(by_key * within).mT @ y
    d_start = -((x @ states) * y).sum(-1, keepdim=True)
    return y, -y * x, d_w, d_v, -by_key * by_value, d_start, -(from_start * x).mT @ y


def _define_solved() -> torch._ops.OpOverload:
    """Registers the solve and its backward, once in a process."""
    if not hasattr(torch.ops.nlc, "solved_1"):
        backward = torch.library.custom_op("nlc::solved_backward_1", _solved_backward, mutates_args=())
        backward.register_fake(lambda d_x, x, *system: tuple(torch.empty_like(y) for y in (x, *system[:-1])))
        forward = torch.library.custom_op("nlc::solved_1", _solved_forward, mutates_args=())
        forward.register_fake(lambda q, *system: torch.empty_like(q))
        forward.register_autograd(_solved_gradients, setup_context=_solved_context)
    return torch.ops.nlc.solved_1.default


def _solved_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *system, ctx.iterate = inputs[1:]
    ctx.save_for_backward(output, *system)


def _solved_gradients(ctx, d_x):  # type: ignore[no-untyped-def]
    return *torch.ops.nlc.solved_backward_1.default(d_x.contiguous(), *ctx.saved_tensors, ctx.iterate), None


_SOLVED = _define_solved()


def solved(q: Tensor, ridge: Tensor, w: Tensor, v: Tensor, within: Tensor, from_start: Tensor, states: Tensor, iterate: bool) -> Tensor:
    """The x_t with x_t @ M_t + ridge_t * x_t = q_t, for the states M_t of a memory whose errors do not see it.

        M_t = from_start_t states + sum_s within_ts w_s v_s^T

    q, ridge, w, v [N, G, C, K], within [N, G, C, C], from_start [N, G, C, 1], states at chunk starts [N, G, K, K]. `iterate`: by conjugate
    gradients, and by elimination if those fail; else by elimination, token by token. Gradients solve the transposed system, once.
    """
    x: Tensor = _SOLVED(q, ridge, w, v, within.expand(*w.shape[:3], w.shape[2]), from_start.expand(*w.shape[:3], 1), states, iterate)
    return x
