"""The gated delta rule written by hand for this one rule: what generated code is measured against.

    S_t = exp(g_t) S_{t-1} + beta_t k_t (v_t - (exp(g_t) S_{t-1})^T k_t)^T,   o_t = S_t^T q_t

Chunk form with everything the rule allows and a general compiler may not know:
  - chunk axis first, so that one chunk of all heads is contiguous and stays in the second-level cache through all its products;
  - read rows and probe rows stacked, so that scores, state reads and their gradients are one product each instead of two;
  - the triangular inverse meets the V error columns inside the recurrence, never the K columns of the rows;
  - gate gradients from the products row . d row - column . d column a token, no gradient of the C x C decay matrix;
  - the recurrence, its reads and its backward are one operator each, so that the graph does not depend on T.

Axes: B batch, T tokens, H heads, G = B * H, N chunks, C tokens of a chunk, K key, V value. Run: python yardstick.py [T ...]
"""

import json
import statistics
import sys
import time

import torch
from torch import Tensor


def recurrence(scores: Tensor, v: Tensor, rows: Tensor, columns: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scores [N, G, 2C, C] = [reads; probes], v [N, G, C, V], rows [N, G, 2C, K], columns [N, G, C, K], total [N, G, 1, 1].

    Errors are seen - target: (I + A) e = Y_probe S - v; o = Y_read S - A_read e; S' = total S - X^T e.
    """
    n, g, _, c = scores.shape
    k, width = rows.shape[-1], v.shape[-1]
    # A row-major lower matrix is a column-major upper one: passed as such, the library makes no copy of it.
    # It reads neither the diagonal nor the other triangle, so the scores of the probes need no mask.
    identity = torch.eye(c, dtype=v.dtype, device=v.device).expand(n, g, c, c)
    inverse = torch.linalg.solve_triangular(scores[:, :, c:].mT, identity, upper=True, unitriangular=True).mT
    o, e, states = torch.empty_like(v), torch.empty_like(v), v.new_empty(n + 1, g, k, width)
    seen, residual = v.new_empty(g, 2 * c, width), v.new_empty(g, c, width)
    read, probed = seen[:, :c], seen[:, c:]
    state = states[0].zero_()
    steps = zip(
        scores[:, :, :c].unbind(), v.unbind(), rows.unbind(), columns.mT.unbind(), total.unbind(), inverse.unbind(),
        o.unbind(), e.unbind(), states[1:].unbind(), strict=True,
    )  # fmt: skip
    for score, v_i, rows_i, columns_i, total_i, inverse_i, o_i, e_i, following in steps:
        torch.bmm(rows_i, state, out=seen)
        torch.sub(probed, v_i, out=residual)
        torch.bmm(inverse_i, residual, out=e_i)
        torch.baddbmm(read, score, e_i, alpha=-1, out=o_i)
        torch.mul(state, total_i, out=following)
        following.baddbmm_(columns_i, e_i, alpha=-1)
        state = following
    return o, e, states, inverse


def recurrence_backward(
    scores: Tensor, rows: Tensor, columns: Tensor, total: Tensor, e: Tensor, states: Tensor, inverse: Tensor, d_o: Tensor, d_last: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of scores, v, rows, columns, and <d S', S'> of every chunk; those of scores and columns with the sign turned."""
    n, g, k = scores.shape[0], scores.shape[1], rows.shape[-1]
    c = scores.shape[3]
    d_scores, d_v, d_rows, d_columns = (torch.empty_like(x) for x in (scores, e, rows, columns))
    d_end = e.new_empty(n, g, 1, 1)
    d_state, flat = d_last.clone(), (g, 1, k * e.shape[-1])
    d_seen, d_e = e.new_empty(g, 2 * c, e.shape[-1]), torch.empty_like(e[0])
    d_read, d_probed, d_state_t = d_seen[:, :c], d_seen[:, c:], d_state.mT
    steps = list(zip(
        e.unbind(), e.mT.unbind(), states[:-1].mT.unbind(), states[1:].unbind(), scores[:, :, :c].mT.unbind(), columns.unbind(),
        rows.mT.unbind(), total.unbind(), inverse.mT.unbind(), d_o.unbind(), d_v.unbind(), d_rows.unbind(), d_columns.unbind(),
        d_scores.unbind(), d_end.unbind(), strict=True,
    ))  # fmt: skip
    for step in reversed(steps):
        e_i, e_t, state_t, following, score_t, column, row_t, total_i, inverse_t, d_o_i, d_v_i, d_row, d_column, d_score, d_end_i = step
        torch.bmm(d_state.view(flat), following.view(flat).mT, out=d_end_i)
        torch.bmm(e_i, d_state_t, out=d_column)
        torch.bmm(score_t, d_o_i, out=d_e)
        d_e.baddbmm_(column, d_state)
        torch.bmm(inverse_t, d_e, out=d_v_i)
        d_read.copy_(d_o_i)
        torch.neg(d_v_i, out=d_probed)
        torch.bmm(d_seen, e_t, out=d_score)
        torch.bmm(d_seen, state_t, out=d_row)
        d_state.mul_(total_i)
        d_state.baddbmm_(row_t, d_seen)
    return d_scores, d_v, d_rows, d_columns, d_end


RECURRENCE = torch.library.custom_op("yardstick::recurrence", recurrence, mutates_args=())
RECURRENCE.register_fake(
    lambda scores, v, rows, columns, total: (
        torch.empty_like(v),
        torch.empty_like(v),
        v.new_empty(v.shape[0] + 1, v.shape[1], rows.shape[-1], v.shape[-1]),
        scores.new_empty(*scores.shape[:2], scores.shape[3], scores.shape[3]),
    )
)
RECURRENCE_BACKWARD = torch.library.custom_op("yardstick::recurrence_backward", recurrence_backward, mutates_args=())
RECURRENCE_BACKWARD.register_fake(
    lambda scores, rows, columns, total, e, states, inverse, d_o, d_last: (
        *(torch.empty_like(x) for x in (scores, e, rows, columns)),
        total.new_empty(total.shape),
    )
)


class ChunkedGatedDeltaRule(torch.autograd.Function):
    """Chunk-first q, k [N, G, C, K], v [N, G, C, V], beta, g [N, G, C] -> o [N, G, C, V], final state [G, K, V]."""

    @staticmethod
    def forward(ctx, q, k, v, beta, g):  # type: ignore[no-untyped-def]
        c, dtype = q.shape[2], q.dtype
        through = g.double().cumsum(-1)
        later = torch.ones(c, c, dtype=torch.bool, device=q.device).triu(1)
        decay = (through.unsqueeze(-1) - through.unsqueeze(-2)).to(dtype).masked_fill(later, float("-inf")).exp()
        end = through[..., -1:]
        start, to_end, total = (x.to(dtype).exp() for x in (through, end - through, end))
        rows, column = torch.cat([q, k], 2), k * beta.unsqueeze(-1)
        scores = (rows @ column.mT).unflatten(2, (2, c)).mul(decay.unsqueeze(2)).flatten(2, 3)
        carried_rows = rows * torch.cat([start, start], -1).unsqueeze(-1)
        carried_columns = column * to_end.unsqueeze(-1)
        o, e, states, inverse = RECURRENCE(scores, v, carried_rows, carried_columns, total.unsqueeze(-1))
        ctx.save_for_backward(rows, beta, start, to_end, total, decay, column, scores, carried_rows, carried_columns, e, states, inverse)
        return o, states[-1]

    @staticmethod
    def backward(ctx, d_o, d_last):  # type: ignore[no-untyped-def]
        rows, beta, start, to_end, total, decay, column, scores, carried_rows, carried_columns, e, states, inverse = ctx.saved_tensors
        c = beta.shape[-1]
        d_scores, d_v, d_carried_rows, d_carried_columns, d_end = RECURRENCE_BACKWARD(
            scores, carried_rows, carried_columns, total.unsqueeze(-1), e, states, inverse, d_o.contiguous(), d_last
        )
        own = torch.eye(c, dtype=torch.bool, device=rows.device)
        unseen = torch.stack([torch.zeros_like(own), own])  # a read sees the write of its token, a probe does not
        d_scores = -d_scores.unflatten(2, (2, c)).mul(decay.unsqueeze(2)).masked_fill(unseen, 0).flatten(2, 3)
        d_rows = d_scores @ column + d_carried_rows * torch.cat([start, start], -1).unsqueeze(-1)
        d_column = d_scores.mT @ rows - d_carried_columns * to_end.unsqueeze(-1)
        # exp(cum) scales the rows, exp(-cum) the columns, exp(cum_C) the state at the end of the chunk
        by_row = (rows * d_rows).sum(-1)
        d_through = by_row[..., :c] + by_row[..., c:] - (column * d_column).sum(-1)
        d_g = d_through.flip(-1).cumsum(-1).flip(-1) + d_end.squeeze(-1)
        d_k = d_rows[:, :, c:] + d_column * beta.unsqueeze(-1)
        return d_rows[:, :, :c], d_k, d_v, (d_column * rows[:, :, c:]).sum(-1), d_g


def gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, chunk: int = 32) -> tuple[Tensor, Tensor]:
    """q, k [B, T, H, K], v [B, T, H, V], beta, g [B, T, H] (g the logarithm of the gate) -> o [B, T, H, V], state [B, H, K, V]."""
    batch, tokens, heads, key = q.shape

    def chunks(x: Tensor) -> Tensor:
        shape = (batch, tokens // chunk, chunk, heads, x.shape[-1])
        return x.reshape(shape).permute(1, 0, 3, 2, 4).reshape(tokens // chunk, batch * heads, chunk, x.shape[-1])

    o, state = ChunkedGatedDeltaRule.apply(
        chunks(q), chunks(k), chunks(v), chunks(beta.unsqueeze(-1)).squeeze(-1), chunks(g.unsqueeze(-1)).squeeze(-1)
    )
    o = o.view(tokens // chunk, batch, heads, chunk, -1).permute(1, 0, 3, 2, 4).reshape(v.shape)
    return o, state.view(batch, heads, key, -1)


def per_token(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The rule as it reads, one token after the other."""
    state, outputs = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3]), []
    for t in range(q.shape[1]):
        state = state * g[:, t, :, None, None].exp()
        error = v[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], state)
        state = state + torch.einsum("bh,bhk,bhv->bhkv", beta[:, t], k[:, t], error)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(outputs, 1), state


def draw(tokens: int, batch: int = 4, heads: int = 4, width: int = 64, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(batch, tokens, heads, width, dtype=dtype) for _ in range(3))
    unit = torch.nn.functional.normalize
    rates, gates = torch.rand(batch, tokens, heads, dtype=dtype), -0.1 * torch.rand(batch, tokens, heads, dtype=dtype)
    return [x.requires_grad_() for x in (unit(q, dim=-1), unit(k, dim=-1), v, rates, gates)]


def sgemm_gflops(size: int = 2048, times: int = 5) -> float:
    """The float32 matrix product rate of this moment."""
    a, rates = torch.randn(size, size), []
    for _ in range(times):
        start = time.perf_counter()
        a @ a
        rates.append(2 * size**3 / (time.perf_counter() - start) / 1e9)
    return statistics.median(rates)


def check() -> float:
    """Largest relative difference to the per-token loop in float64, over outputs and gradients."""
    inputs = draw(128, batch=2, heads=2, width=16, dtype=torch.float64)
    results = []
    for rule in (gated_delta_rule, per_token):
        o, state = rule(*inputs)
        results.append([o, state, *torch.autograd.grad(o.square().sum() + state.sin().sum(), inputs)])
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*results, strict=True))


def main() -> None:
    torch.set_num_threads(2)
    print(json.dumps({"largest relative difference to the loop in float64": check()}))
    for tokens in [int(x) for x in sys.argv[1:]] or [1024, 4096, 16384]:
        inputs = draw(tokens)
        weight = torch.randn_like(inputs[2])
        torch._dynamo.reset()
        rules = {c: torch.compile(lambda *x, c=c: gated_delta_rule(*x, chunk=c), fullgraph=True, dynamic=False) for c in (32, 64)}
        seconds: dict[str, list[float]] = {}
        for repetition in range(12 if tokens > 4096 else 22):
            for c, rule in rules.items():
                start = time.perf_counter()
                torch.autograd.grad(rule(*inputs)[0], inputs, weight)
                seconds.setdefault(f"cold {c}" if repetition == 0 else f"step {c}", []).append(time.perf_counter() - start)
        rate = {k: round(4 * tokens / statistics.median(v)) if "step" in k else round(v[0], 1) for k, v in seconds.items()}
        print(json.dumps({"tokens": tokens, "sgemm_gflops": round(sgemm_gflops()), **rate}), flush=True)


if __name__ == "__main__":
    main()
