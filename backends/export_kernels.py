"""The kernels of `kernels.py` and the lookup of `layers.py` for export: plain torch at a fixed number of tokens, without gradients.

MLIR knows neither registered operators nor triangular solves. Here the loops over chunks and tokens are Python loops, unrolled while the
module is traced; the solve is substitution written out; nothing needs float64, which not every device has. The generator copies these
functions instead of those of the same name, so that all other generated code stays the same.

Axes: N chunks, G independent memories (batch x heads), C tokens of a chunk, K key, V value,
      n states of a rule (memory, momentum, ...), D = n * K stacked key rows.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nlc.backends.layers import pieces, rows_and_tokens

BLOCK = 16
"""Rows of a triangular matrix that are inverted one by one; the blocks themselves are joined by products."""


def decayed(rows: Tensor, w: Tensor, log_keep: Tensor, inclusive: tuple[bool, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `kernels.decayed` returns. Sums of the logarithms between two tokens, not differences of sums: float32 is enough."""
    chunk = w.shape[2]
    through = torch.ones(chunk, chunk, dtype=w.dtype, device=w.device).tril()
    past = through.tril(-1)
    later = log_keep.unsqueeze(-1) * past  # [t, s]: the gate of t where t is after s
    scores, carried = [rows @ w.mT], [rows]
    if inclusive:
        sums = [through if kind else past for kind in inclusive]
        between = torch.cat([(each @ later).exp() * each for each in sums], 2)
        from_start = torch.cat([each @ log_keep.unsqueeze(-1) for each in sums], 2).exp()
        scores, carried = [scores[0] * between], [rows * from_start]
    to_end = later.sum(2).exp().unsqueeze(-1)
    total = log_keep.sum(-1).exp()[..., None, None]
    return scores[0], carried[0], w * to_end, total


def propagated(gates: Tensor, columns: Tensor, looks: list[tuple[int, bool]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `kernels.propagated` returns, token by token."""
    chunk, n = gates.shape[2:4]
    unit = torch.eye(chunk, dtype=gates.dtype, device=gates.device)
    product = torch.eye(n, dtype=gates.dtype, device=gates.device).expand(*gates.shape[:2], n, n)
    writes = gates.new_zeros(*gates.shape[:2], n, chunk)
    products, reached = [product], [writes]
    for t in range(chunk):
        product = gates[:, :, t] @ product
        writes = gates[:, :, t] @ writes + columns[:, :, t, :, None] * unit[t]
        products.append(product)
        reached.append(writes)
    return _viewed(products, looks), _viewed(reached, looks), writes.mT, product


def _viewed(states: list[Tensor], looks: list[tuple[int, bool]]) -> Tensor:
    """[looks, N, G, C, width], the rows that are looked at of states: C + 1 tensors [N, G, n, width], the first before the first token."""
    if not looks:
        return states[0].new_zeros(0, *states[0].shape[:2], len(states) - 1, states[0].shape[-1])
    return torch.stack([torch.stack([x[:, :, i] for x in (states[1:] if new else states[:-1])], 2) for i, new in looks])


def inter_chunk_free(d: Tensor, decay: Tensor | None, z0: Tensor) -> Tensor:
    """What `kernels.inter_chunk_free` returns, one chunk after the other."""
    states = [z0]
    for i in range(d.shape[0]):
        states.append((states[-1] if decay is None else _advanced(decay[i], states[-1])) + d[i])
    return torch.stack(states)


def _advanced(decay: Tensor, state: Tensor) -> Tensor:
    """(decay kron I) state, for state [G, n * K, V] and decay [G, n, n], or [G, n, n, K] where channels differ."""
    n = decay.shape[1]
    if decay.dim() == 4:
        return (decay.unsqueeze(-1) * state.unflatten(1, (1, n, -1))).sum(2).flatten(1, 2)
    return decay * state if n == 1 else (decay @ state.unflatten(1, (n, -1)).flatten(2)).view(state.shape)


def _inverse(lower: Tensor) -> Tensor:
    """(I + A)^-1 by substitution: row by row in blocks, then block by block.

    Of A [N, G, C, C] only what is below the diagonal is read.
    """
    chunk = lower.shape[-1]
    size = min(BLOCK, chunk)
    unit = torch.eye(chunk, dtype=lower.dtype, device=lower.device).expand(lower.shape)
    inverse = unit[:, :, :0]
    for start in range(0, chunk, size):
        here = slice(start, start + size)
        block, right = lower[:, :, here, here], unit[:, :, here]
        if start:
            right = right - lower[:, :, here, :start] @ inverse
        rows = right[:, :, :1]
        for i in range(1, size):
            rows = torch.cat([rows, right[:, :, i : i + 1] - block[:, :, i : i + 1, :i] @ rows], 2)
        inverse = torch.cat([inverse, rows], 2)
    return inverse


def sweep(scores: Tensor, v: Tensor, rows: Tensor, x: Tensor, decay: Tensor, z0: Tensor) -> tuple[Tensor, Tensor]:
    """What `kernels.sweep` returns, one chunk after the other."""
    reads = scores.shape[2] - v.shape[2]
    inverse = _inverse(scores[:, :, reads:])
    state, out = z0, []
    for i in range(v.shape[0]):
        seen = rows[i] @ state
        error = inverse[i] @ (v[i] - seen[:, reads:])
        out.append(seen[:, :reads] + scores[i, :, :reads] @ error)
        state = _advanced(decay[i], state) + x[i].mT @ error
    return torch.stack(out), state


def over_periods(
    body: Callable[..., tuple[Any, ...]],
    p: dict[str, Tensor],
    z: dict[str, Tensor],
    flows: list[Tensor | float],
    anchored: list[str],
    period: int,
    position: Tensor | int,
    gates: list[tuple[Callable[..., tuple[Tensor, ...]], list[Tensor | float]]],
) -> list[Tensor | dict[str, Tensor]]:
    """What `layers.over_periods` returns, for calls of one token, or calls that begin where a period begins: lengths must be known."""
    B, T = rows_and_tokens(flows)
    lengths = [min(period, T - start) for start in range(0, T, period)]
    parts = pieces(flows, z, gates, (B, T), lengths)
    begins = torch.as_tensor(position) % period == 0
    made: list[list[Tensor]] = []
    new: dict[str, Tensor] = {}
    for piece in zip(*parts, strict=True):
        now = {**z, **new}
        new = {**new, **{f"{n}.anchor": torch.where(begins, z[n], z[f"{n}.anchor"]) if T == 1 else now[n] for n in anchored}}
        *outputs, states = body(p, {**z, **new}, *piece)
        new = {**new, **states}
        made.append(outputs)
    return [*(torch.cat(same, 1) for same in zip(*made, strict=True)), new]


def embedding(table: Tensor, tokens: Tensor) -> Tensor:
    """Rows of table [vocabulary, ...] for tokens [B, T]."""
    return F.embedding(tokens, table.flatten(1)).unflatten(-1, table.shape[1:])


def solved_now(q: Tensor, ridge: Tensor, state: Tensor) -> Tensor:
    """What `kernels.solved_now` returns, by elimination without exchange of rows: enough for a positive definite state."""
    unit = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    rows = torch.cat([state.mT + ridge.unsqueeze(-1) * unit, q.unsqueeze(-1)], -1)
    for i in range(q.shape[-1]):
        pivot = rows[..., i : i + 1, :] / rows[..., i : i + 1, i : i + 1]
        rows = rows - (rows[..., i : i + 1] - unit[:, i : i + 1]) * pivot
    return rows[..., -1]


def solved(q: Tensor, ridge: Tensor, w: Tensor, v: Tensor, within: Tensor, from_start: Tensor, states: Tensor, iterate: bool) -> Tensor:
    """What `kernels.solved` returns; the state of every token is formed."""
    writes = (w.unsqueeze(-1) * v.unsqueeze(-2)).flatten(-2)
    seen = (within.expand(*w.shape[:3], w.shape[2]) @ writes).unflatten(-1, states.shape[-2:])
    return solved_now(q, ridge, seen + from_start.unsqueeze(-1) * states.unsqueeze(2))
