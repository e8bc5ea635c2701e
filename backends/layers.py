"""Small pieces of generated modules that are no memories: layouts, convolution, embedding, state bookkeeping.

Like `kernels.py` this file is a quarry: the generator copies the functions a module needs, each stands on torch alone.

Axes: B batch, T tokens, G copies of a memory (heads), N chunks, C tokens of a chunk, D any width.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, groupby
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

NORM_EPS = 1e-6
SMALLEST_NORM = 1e-7


def chunked(x: Tensor, chunk: int, dtype: torch.dtype, fill: float = 0.0) -> Tensor:
    """[B, T, G, ...] -> [N, B * G, C, ...]: chunks first, the last one padded with `fill`."""
    B, T = x.shape[:2]
    N = -(-T // chunk)
    if N * chunk != T:
        x = torch.cat([x, x.new_full((B, N * chunk - T, *x.shape[2:]), fill)], 1)
    return x.to(dtype).unflatten(1, (N, chunk)).permute(1, 0, 3, 2, *range(4, x.dim() + 1)).flatten(1, 2)


def unchunked(x: Tensor, batch: int, tokens: int) -> Tensor:
    """[N, B * G, C, D] -> [B, T, G, D], the inverse of `chunked`."""
    return x.unflatten(1, (batch, -1)).permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :tokens]


def over_periods(
    body: Callable[..., tuple[Any, ...]],
    p: dict[str, Tensor],
    z: dict[str, Tensor],
    flows: list[Tensor | float],
    anchored: list[str],
    period: int,
    position: Tensor | int,
    gates: list[tuple[Callable[..., tuple[Tensor, ...]], list[Tensor | float]]],
    cut: tuple[int, list[str]] = (0, []),
) -> list[Tensor | dict[str, Tensor]]:
    """Run `body(p, z, *flows, gates)` for each period of a call, one after the other, and join what it makes along time.

    flows [B, T, ..], or [.., 1, ..] or numbers where they are the same for all tokens. Token `position` is the first of the call. Where a
    period begins, the anchors of the states `anchored` become these states. `gates`: functions that multiply gates out, and their flows;
    the body gets what they make of its period. `cut`: before every so many tokens (0: never) no gradient passes by these states. Returns
    the outputs [B, T, ..] and the new states.
    """
    B, T = rows_and_tokens(flows)
    first = (period - int(position) % period) % period
    lengths = cuts(T, period, first)
    parts = pieces(flows, z, gates, (B, T), lengths)
    made: list[list[Tensor]] = []
    new = {f"{name}.anchor": z[f"{name}.anchor"] for name in anchored}
    for i, piece in enumerate(zip(*parts, strict=True)):
        at = int(position) + sum(lengths[:i])
        if cut[0] and at > 0 and at % cut[0] == 0:
            z, new = constant(z, cut[1]), constant(new, cut[1])
        if i > 0 or first == 0:
            new |= {f"{name}.anchor": {**z, **new}[name] for name in anchored}
        *outputs, states = body(p, {**z, **new}, *piece)
        new |= states
        made.append(outputs)
    return [*(torch.cat(same, 1) for same in zip(*made, strict=True)), new]


def cuts(tokens: int, period: int, first: int) -> list[int]:
    """The lengths of the pieces of a call of so many tokens, the first of them `first` tokens where that is not 0."""
    lengths = [n for n in (min(first, tokens), *([period] * ((tokens - first) // period))) if n > 0]
    return lengths + ([tokens - sum(lengths)] if sum(lengths) < tokens else [])


def recomputed(
    length: int,
    body: Callable[..., tuple[Any, ...]],
    p: dict[str, Tensor],
    z: dict[str, Tensor],
    flows: list[Tensor | float],
    anchored: list[str],
    period: int,
    position: Tensor | int,
    gates: list[tuple[Callable[..., tuple[Tensor, ...]], list[Tensor | float]]],
    cut: tuple[int, list[str]] = (0, []),
) -> list[Tensor | dict[str, Tensor]]:
    """`over_periods`, segment by segment of `length` tokens. The backward pass runs each of them anew: only the states between them are
    kept."""
    if not torch.is_grad_enabled():
        return over_periods(body, p, z, flows, anchored, period, position, gates, cut)
    B, T = rows_and_tokens(flows)
    lengths = cuts(T, length, -int(position) % length)
    parts = pieces(flows, {}, [], (B, T), lengths)
    given = [pieces(each, {}, [], (B, T), lengths) for _, each in gates]
    made: list[list[Tensor]] = []
    new: dict[str, Tensor] = {}
    for i, (piece, begin) in enumerate(zip(zip(*parts, strict=True), accumulate([0, *lengths]), strict=False)):
        now = [(make, [flow[i] for flow in each]) for (make, _), each in zip(gates, given, strict=True)]
        rest = (list(piece), anchored, period, int(position) + begin, now, cut)
        *outputs, states = checkpoint(over_periods, body, p, {**z, **new}, *rest, use_reentrant=False, preserve_rng_state=False)
        new |= states
        made.append(outputs)
    return [*(torch.cat(same, 1) for same in zip(*made, strict=True)), new]


def constant(z: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """The states, some of them as constants."""
    return {name: x.detach() if name in names else x for name, x in z.items()}


def straight(new: Tensor, old: Tensor) -> Tensor:
    """The value of `new` as a constant; its gradient is that of `old`."""
    return new.detach() + (old - old.detach())


def straight_read(query: Tensor, old: Tensor) -> Tensor:
    """Zeros [B, T, G, V], with the gradient of what a state [B, G, K, V] answers to queries [B, T, G, K]."""
    return (query.detach().to(old.dtype).transpose(1, 2) @ (old - old.detach())).transpose(1, 2)


def rows_and_tokens(flows: list[Tensor | float]) -> tuple[int, int]:
    """B and T of a call: the longest of flows that may be the same for all rows or tokens."""
    shapes = [x.shape for x in flows if has_tokens(x)]
    return max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)


def has_tokens(x: Tensor | float) -> TypeGuard[Tensor]:
    """False for a number."""
    return isinstance(x, Tensor) and x.dim() > 1


def pieces(
    flows: list[Tensor | float],
    z: dict[str, Tensor],
    gates: list[tuple[Callable[..., tuple[Tensor, ...]], list[Tensor | float]]],
    shape: tuple[int, int],
    lengths: list[int],
) -> list[list[Any]]:
    """Each flow [B, T, ..] cut along time, what is the same for all tokens whole; then what the gates, if any, make of each piece."""
    parts: list[list[Any]] = [list(x.split(lengths, 1)) if has_tokens(x) and x.shape[1] == shape[1] else [x] * len(lengths) for x in flows]
    if gates:
        like = next(x for x in z.values() if x.is_floating_point()).new_zeros(shape)
        parts.append([list(each) for each in zip(*(gates_of(make, [like, *given], lengths) for make, given in gates), strict=True)])
    return parts


def gates_of(make: Callable[..., tuple[Tensor, ...]], flows: list[Tensor | float], lengths: list[int]) -> list[tuple[Tensor, ...]]:
    """`make(*flows)` for pieces of these lengths of flows [B, T, ..]; neighbours of one length together, as rows of one batch.

    The first flow has its whole B and T.
    """
    found: list[tuple[Tensor, ...]] = []
    B, T = flows[0].shape[:2]  # type: ignore[union-attr]
    flows = [x.expand(B, T, *x.shape[2:]) if has_tokens(x) else x for x in flows]
    for n, same in groupby(lengths):
        count = len(list(same))
        start = sum(lengths[: len(found)])
        parts = [x[:, start : start + n * count] if has_tokens(x) else x for x in flows]
        rows = [x.unflatten(1, (count, n)).transpose(0, 1).flatten(0, 1) if has_tokens(x) else x for x in parts]
        seen, between, to_end, total = make(*rows)
        made = [x.unflatten(axis, (count, -1)).unbind(axis) for x, axis in ((seen, 1), (between, 1), (to_end, 0), (total, 0))]
        found += zip(*made, strict=True)
    return found


def each_sample(x: Tensor, samples: int) -> Tensor:
    """[B, T, samples * G, ...] -> [B, T * samples, G, ...]."""
    return x.unflatten(2, (samples, -1)).flatten(1, 2)


def at_sample(x: Tensor, samples: int, place: int) -> Tensor:
    """[B, T, ...] -> [B, T * samples, ...]: x at one of the samples of each token, zeros at the others."""
    each = [x if i == place else torch.zeros_like(x) for i in range(samples)]
    return torch.stack(each, 2).flatten(1, 2)


def first(x: Tensor, samples: int, fill: float) -> Tensor:
    """[B, T, ...] -> [B, T, samples, ...]: x at the first sample of each token, `fill` at the others."""
    rest = x.new_full((), fill).expand(*x.shape[:2], samples - 1, *x.shape[2:])
    return torch.cat([x.unsqueeze(2), rest], 2)


def spread(x: Tensor, *shape: int) -> Tensor:
    """x with its axes of length 1 made long."""
    return x.expand(shape)


def l2norm(x: Tensor) -> Tensor:
    """x divided by its length along the last axis."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + NORM_EPS)


def rope(x: Tensor, position: Tensor, theta: float) -> Tensor:
    """Channels i and i + K/2 of x [.., K], a plane, turned by position * theta^(-2 i / K); angles have the dtype of position [..]."""
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
    angle = position.unsqueeze(-1) * frequency.to(position.dtype)
    cos, sin = torch.cos(angle), torch.sin(angle)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def newton_schulz(x: Tensor, steps: int, a: float, b: float, c: float, dtype: torch.dtype | None = None) -> Tensor:
    """Near the orthogonal factor of x [..., K, V]: X <- a X + (b A + c A^2) X with A = X X^T, from X = x / |x|; the steps in `dtype`."""
    given = x.dtype
    x = rounded(x * torch.rsqrt((x * x).sum((-2, -1), keepdim=True).clamp(min=SMALLEST_NORM**2)), dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(steps):
        A = rounded(x @ x.mT, dtype)
        x = rounded(a * x + rounded(rounded(b * A + c * (A @ A), dtype) @ x, dtype), dtype)
    return (x.mT if tall else x).to(given)


def rounded(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """x no more precise than `dtype`. On a CPU its own dtype stays: products are faster in float32, and round to the same."""
    if dtype is None:
        return x
    return x.to(dtype).to(x.dtype) if x.device.type == "cpu" else x.to(dtype)


def inverse_root(x: Tensor, power: float, eps: float) -> Tensor:
    """(x + eps I)^(-1 / power) of a symmetric matrix; eigenvalues below 0 count as 0."""
    values, vectors = torch.linalg.eigh(x)
    return (vectors * (values.clamp(min=0) + eps).pow(-1 / power).unsqueeze(-2)) @ vectors.mT


def gram(x: Tensor, share: Tensor) -> Tensor:
    """The sum over tokens of share x x^T, no matter how the gradient flows: x [B, T, ..], share [B, T] -> [I, I], the axes of x joined."""
    rows = x.detach().flatten(0, 1).flatten(1)
    return rows.mT @ (rows * share.detach().reshape(-1, 1))


def _kept(rows: Tensor, like: Tensor) -> Tensor:
    """A part of a tensor as a state of its own, that does not keep the whole alive."""
    return rows.to(like.dtype).clone(memory_format=torch.contiguous_format)


def causal_conv(x: Tensor, tail: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Depthwise convolution over time. x [B, T, ...], the rows before it tail [B, width - 1, ...], weight [width, ...].

    Returns y [B, T, ...], y_t = sum over j of weight[j] x_{t - width + 1 + j}, and the new tail.
    """
    T, width = x.shape[1], weight.shape[0]
    rows = torch.cat([tail.to(x.dtype), x], 1)
    y = rows[:, width - 1 :] * weight[width - 1]
    for j in range(width - 1):
        y = y + rows[:, j : j + T] * weight[j]
    return y, _kept(rows[:, T:], tail)


def delayed(x: Tensor, tail: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """x [B, T, ...] as it was `by` tokens ago, and the new tail; the rows before x are tail [B, n, ...], n at least `by`."""
    rows, T, n = torch.cat([tail.to(x.dtype), x], 1), x.shape[1], tail.shape[1]
    return rows[:, n - by : n - by + T], _kept(rows[:, T:], tail)


def begun(z: dict[str, Tensor], reset: Tensor, first: dict[str, Tensor | float]) -> dict[str, Tensor]:
    """The states in rows that begin anew at the first token: reset [B, T], not 0 there; first values without the batch, or numbers."""
    fires = reset[:, 0] != 0
    anew = {key: torch.where(fires.reshape(-1, *(1 for _ in z[key].shape[1:])), value, z[key]) for key, value in first.items()}
    return {**z, **anew}


def within(starts: Tensor) -> Tensor:
    """The number of its sequence for each token, [B, T] counted from the one before the call: starts [B, T], not 0 where one starts."""
    return (starts != 0).cumsum(1)


def causal_conv_within(x: Tensor, tail: Tensor, weight: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """`causal_conv` in which no token sees a sequence before its own; the rows of the tail that its end does not see become zeros."""
    T, width = x.shape[1], weight.shape[0]
    rows, number = torch.cat([tail.to(x.dtype), x], 1), _with_tail(within(starts), width - 1)
    y = rows[:, width - 1 :] * weight[width - 1]
    for j in range(width - 1):
        y = y + _where_same(rows[:, j : j + T], number[:, j : j + T], number[:, width - 1 :]) * weight[j]
    return y, _kept(_where_same(rows[:, T:], number[:, T:], number[:, -1:]), tail)


def delayed_within(x: Tensor, tail: Tensor, by: int, starts: Tensor) -> tuple[Tensor, Tensor]:
    """`delayed` in which a token sees zeros for those of a sequence before its own."""
    rows, T, n = torch.cat([tail.to(x.dtype), x], 1), x.shape[1], tail.shape[1]
    number = _with_tail(within(starts), n)
    seen = _where_same(rows[:, n - by : n - by + T], number[:, n - by : n - by + T], number[:, n:])
    return seen, _kept(_where_same(rows[:, T:], number[:, T:], number[:, -1:]), tail)


def _with_tail(number: Tensor, length: int) -> Tensor:
    """The numbers of sequences [B, T], and those of the rows before, which are all of the last one before the call."""
    return torch.cat([number.new_zeros(number.shape[0], length), number], 1)


def _where_same(rows: Tensor, theirs: Tensor, mine: Tensor) -> Tensor:
    """rows [B, T, ...] where two numbers [B, T] are the same, zeros elsewhere."""
    same = (theirs == mine).reshape(*rows.shape[:2], *(1 for _ in rows.shape[2:]))
    return torch.where(same, rows, torch.zeros_like(rows))


def changes(x: Tensor, last: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """1 where an index [B, T] differs from that of the token before, else 0; the last one of the call before is last [B]."""
    x = x.to(last.dtype)
    return (x != torch.cat([last.unsqueeze(1), x[:, :-1]], 1)).to(dtype), x[:, -1]


def places(starts: Tensor, before: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The place of each token in its sequence, [B, T] from 0, and the tokens of the last one so far; before [B]: those before the call."""
    t = torch.arange(starts.shape[1], device=starts.device)
    first = torch.where(starts != 0, t, -before.unsqueeze(1)).cummax(1).values
    place = t - first
    return place.to(dtype), place[:, -1] + 1


def attended(
    query: Tensor,
    contexts: list[tuple[Tensor, Tensor, Tensor, Tensor, int, int]],
    scale: float,
    fixed: list[tuple[Tensor, Tensor]] | None = None,
    every: int = 0,
    starts: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """The mean of the values of all contexts, weighted by exp(scale * query . key), for each query of a call.

    query [B, T, G, K], or [B, T, G * Q, K] for Q queries of each copy. contexts: key [B, T * R, G, K], value [B, T * R, G, V], those of the
    tokens before, keys [B, n * R, G, K] and values [B, n * R, G, V], `over` and R, the samples of a token. A token sees itself and what is
    before it: all of it, or (over > 0) the last `over` tokens; with `every` what is in its own segment of so many tokens, the first n of
    which are before the call. fixed: keys [1, P, G, K] and values [1, P, G, V] that all tokens see. starts: [B, T] of the call and [B, n]
    of the samples before, not 0 where a sequence starts, which ends what its tokens see. Returns the answers [B, T, G, V] (G * Q as the
    query), the new keys and values of each context, new starts.
    """
    T, held, states, before = query.shape[1], [], [], 0
    for key, value, keys, values, over, R in contexts:
        if every and keys.shape[1] == every * R:  # a whole segment before the call is seen no more
            keys, values = keys[:, :0], values[:, :0]
        before = keys.shape[1]
        keys, values = (torch.cat([old, new.to(old.dtype)], 1) for old, new in ((keys, key), (values, value)))
        held.append((keys, values, over, R))
        n = keys.shape[1] // R
        last = max(n - over + 1, 0) if over else (n - 1) // every * every if every and n > every else 0
        states += [keys[:, last * R :], values[:, last * R :]]
    if 0 < every < T and before == 0:
        return _by_segment(query, held, scale, fixed or [], every), *states
    if starts is None:
        return _mean_of_values(query, held, scale, fixed or [], every), *states
    known = torch.cat([starts[1], starts[0].to(starts[1].dtype)], 1)
    windows = [over for _, _, over, _ in held]
    last = max(known.shape[1] - max(windows) + 1, 0) if all(windows) else 0
    return _mean_of_values(query, held, scale, fixed or [], every, within(known)), *states, known[:, last:]


def _by_segment(
    query: Tensor, held: list[tuple[Tensor, Tensor, int, int]], scale: float, fixed: list[tuple[Tensor, Tensor]], every: int
) -> Tensor:
    """Whole segments as rows of a batch, for a call that begins where a segment does; an open one at its end is filled up."""
    B, T = query.shape[:2]
    after = -T % every

    def cut(x: Tensor, R: int = 1) -> Tensor:
        whole = nn.functional.pad(x, (0, 0, 0, 0, 0, after * R)) if after else x
        return whole.unflatten(1, (-1, every * R)).flatten(0, 1)

    rows = [(cut(keys, R), cut(values, R), 0, R) for keys, values, _, R in held]
    answers = _mean_of_values(cut(query), rows, scale, fixed, 0)
    return answers.unflatten(0, (B, -1)).flatten(1, 2)[:, :T]


def _mean_of_values(
    query: Tensor,
    held: list[tuple[Tensor, Tensor, int, int]],
    scale: float,
    fixed: list[tuple[Tensor, Tensor]],
    every: int,
    number: Tensor | None = None,
) -> Tensor:
    """One softmax over the keys of all contexts, each with its mask: causal, of the last tokens, within a segment, within a sequence.

    number [B, n]: that of its sequence for each token that the longest context holds.
    """
    B, T, device = *query.shape[:2], query.device
    pairs = [*((k.expand(B, -1, -1, -1), v.expand(B, -1, -1, -1)) for k, v in fixed), *((keys, values) for keys, values, _, _ in held)]
    q = query.transpose(1, 2)
    k, v = (torch.cat(rows, 1).to(query.dtype).transpose(1, 2) for rows in zip(*pairs, strict=True))
    groups = q.shape[1] != k.shape[1]
    if number is None and len(pairs) == 1 and not fixed and k.shape[2] == T and not held[0][2]:
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=groups).transpose(1, 2)
    masks = [torch.ones(T, keys.shape[1], dtype=torch.bool, device=device) for keys, _ in fixed]
    for keys, _, over, R in held:
        n = keys.shape[1] // R
        at, sample = torch.arange(n - T, n, device=device).unsqueeze(1), torch.arange(n * R, device=device) // R
        seen = sample <= at
        seen = seen & (at - sample < over) if over else seen
        seen = seen & (at // every == sample // every) if every else seen
        if number is not None:
            theirs = number[:, number.shape[1] - n :].repeat_interleave(R, 1)
            seen = seen & (number[:, number.shape[1] - T :].unsqueeze(2) == theirs.unsqueeze(1))
        masks.append(seen)
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=_joined(masks, number), scale=scale, enable_gqa=groups).transpose(
        1, 2
    )


def _joined(masks: list[Tensor], number: Tensor | None) -> Tensor:
    """Masks [T, n], with sequences [B, T, n], beside each other."""
    if number is None:
        return torch.cat(masks, 1)
    return torch.cat([mask.expand(number.shape[0], *mask.shape[-2:]) for mask in masks], 2).unsqueeze(1)


def _embedding_backward(d_rows: Tensor, tokens: Tensor, vocabulary: int) -> Tensor:
    flat = d_rows.reshape(tokens.numel(), -1)
    table: Tensor = torch.ops.aten.embedding_dense_backward(flat, tokens.reshape(-1), vocabulary, -1, False)
    return table


def _define_embedding() -> torch._ops.OpOverload:
    """Registers the lookup and its backward, once in a process.

    An operator of its own because the compiled gradient of an embedding adds in the order its threads arrive: it differs
    from call to call. This one is deterministic.
    """
    if not hasattr(torch.ops.nlc, "embedding"):
        backward = torch.library.custom_op("nlc::embedding_backward", _embedding_backward, mutates_args=())
        backward.register_fake(lambda d_rows, tokens, vocabulary: d_rows.new_empty(vocabulary, d_rows.numel() // tokens.numel()))
        forward = torch.library.custom_op("nlc::embedding", _embedding_forward, mutates_args=())
        forward.register_fake(lambda table, tokens: table.new_empty(*tokens.shape, table.shape[1]))
        forward.register_autograd(
            lambda ctx, d_rows: (backward(d_rows, ctx.saved_tensors[0], ctx.vocabulary), None), setup_context=_save_tokens
        )
    return torch.ops.nlc.embedding.default


def _embedding_forward(table: Tensor, tokens: Tensor) -> Tensor:
    return table[tokens]


def _save_tokens(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[1])
    ctx.vocabulary = inputs[0].shape[0]


_EMBEDDING = _define_embedding()


def embedding(table: Tensor, tokens: Tensor) -> Tensor:
    """Rows of table [vocabulary, ...] for tokens [B, T]."""
    rows: Tensor = _EMBEDDING(table.flatten(1), tokens)
    return rows.unflatten(-1, table.shape[1:])


def under(tensors: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    """The tensors of one block copy, by their names inside it."""
    return {name[len(path) + 1 :]: x for name, x in tensors.items() if name.startswith(path + ".")}


def prefixed(tensors: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    """The inverse of `under`."""
    return {f"{path}.{name}": x for name, x in tensors.items()}


def side_by_side(state: dict[str, Tensor], table: dict[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """The states of several learners as that of one, [B, ..] each as [B, n, ..], under the key of the table."""
    return {**state, **{key: beside([state[part] for part in parts]) for key, parts in table.items()}}


def beside(parts: list[Tensor]) -> Tensor:
    """Tensors [B, ..] as one [B, n, ..]; without a copy where they lie side by side already, as `taken_apart` leaves them."""
    first, ends = parts[0], [part.storage_offset() for part in parts]
    plain = not torch.compiler.is_compiling() and not any(part.requires_grad for part in parts)
    if plain and len({(part.untyped_storage().data_ptr(), part.stride()) for part in parts}) == 1:
        step = ends[1] - ends[0]
        if step > 0 and ends == [ends[0] + i * step for i in range(len(parts))]:
            rows, *within = first.stride()
            return first.as_strided((len(first), len(parts), *first.shape[1:]), (rows, step, *within))
    return torch.stack(parts, 1)


def taken_apart(state: dict[str, Tensor], table: dict[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """The inverse of `side_by_side`."""
    apart = {key: x for key, x in state.items() if key not in table}
    for key, parts in table.items():
        apart |= zip(parts, state[key].unbind(1), strict=True) if key in state else {}
    return apart


def register(module: nn.Module, path: str, value: Tensor) -> None:
    """Add a parameter under a dotted path, with a container module for each part of it.

    Past the checks of `add_module`: a part may be called like a method of the module (`loss`, `step`, `half`).
    """
    *parents, name = path.split(".")
    for parent in parents:
        module = module._modules.setdefault(parent, nn.Module())  # type: ignore[assignment]
    module._parameters[name] = nn.Parameter(value)


def drawn(
    shape: tuple[int, ...],
    distribution: str,
    args: tuple[float, ...],
    generator: torch.Generator | None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A parameter's first value (the same numbers in every dtype), or a constant initial state."""
    if distribution == "normal":
        return torch.randn(shape, generator=generator).to(dtype) * args[0]
    if distribution == "uniform":
        return torch.rand(shape, generator=generator).to(dtype) * (args[1] - args[0]) + args[0]
    if distribution == "eye":
        return torch.eye(shape[-2], shape[-1], dtype=dtype).expand(shape).clone()
    return torch.full(shape, {"zeros": 0.0, "ones": 1.0}.get(distribution, args[0] if args else 0.0), dtype=dtype)


def compute_dtype(*tensors: dict[str, Tensor]) -> torch.dtype:
    """float64 where a parameter or input is, else float32: the dtype of states and positions."""
    return torch.float64 if any(x.dtype == torch.float64 for each in tensors for x in each.values()) else torch.float32


def matrix(x: Tensor, copies: int, leading: int, transposed: bool) -> Tensor:
    """A view of a weight as matrices [.., O, I], values times keys: its copies, `leading` axes that make one, and the others."""
    x = x.reshape(*x.shape[:copies], x.shape[copies : copies + leading].numel(), -1)
    return x if transposed else x.mT


SMALL = 16384
"""Tensors of fewer elements are taken end to end where a rule allows: a call for each would cost more than its arithmetic. Not by a
function that takes all rows at once: its calls are cheap."""


def each_tensor(update: Callable[..., Any], columns: list[list[Tensor]], numbers: Sequence[Tensor], joined: bool) -> None:
    """Apply a rule in place: to the first tensor of each column, to the second of each, ... `joined`: to small ones end to end."""
    like = columns[0][0]
    numbers = [x.to(like.device, torch.promote_types(like.dtype, torch.float32)) for x in numbers]  # a cast in each kernel costs more
    large, small = rows_of(columns, joined and not hasattr(update, "rows"))
    of_rows(update, large, numbers)
    if small:
        parts = list(zip(*small, strict=True))
        vectors = [torch.cat([x.reshape(-1) for x in part]) for part in parts]
        update(*vectors, *numbers)
        for vector, part in zip(vectors, parts, strict=True):
            apart = vector.split([x.numel() for x in part])
            torch._foreach_copy_(list(part), [values.view(x.shape) for values, x in zip(apart, part, strict=True)])


def summed(total: Callable[..., Any], columns: list[list[Tensor]], numbers: Sequence[Tensor], joined: bool) -> list[Tensor]:
    """Sums over all tensors, of what a function makes of each of them."""
    large, small = rows_of(columns, joined and not hasattr(total, "rows"))
    parts = of_rows(total, large, numbers)
    if small:
        parts.append(total(*(torch.cat([x.reshape(-1) for x in part]) for part in zip(*small, strict=True)), *numbers))
    return [torch.stack(part).sum() for part in zip(*parts, strict=True)]


def of_rows(function: Callable[..., Any], rows: list[tuple[Tensor, ...]], numbers: Sequence[Tensor]) -> list[Any]:
    """A function of each row; a compiled one may take them all at once."""
    at_once = getattr(function, "rows", None)
    return at_once(rows, numbers) if at_once is not None else [function(*row, *numbers) for row in rows]


def rows_of(columns: list[list[Tensor]], joined: bool) -> tuple[list[tuple[Tensor, ...]], list[tuple[Tensor, ...]]]:
    """A tensor of each column in a row; those to be taken end to end apart.

    One number is a vector of length 1 here: Inductor of torch 2.13 loses what is copied into a tensor without axes on the CPU.
    """
    large: list[tuple[Tensor, ...]] = []
    small: list[tuple[Tensor, ...]] = []
    for row in zip(*columns, strict=True):
        whole = row if row[0].dim() else tuple(x.view(1) for x in row)
        (small if joined and row[0].numel() < SMALL else large).append(whole)
    return large, small


def recalled(query: Tensor, state: Tensor) -> Tensor:
    """query [..., K] times state [..., K, V]."""
    return (query.unsqueeze(-2) @ state).squeeze(-2)


def gate_vector(entries: list[Tensor | float], like: Tensor) -> Tensor:
    """[..., n] from n tensors shaped as `like`, or numbers."""
    return torch.stack([x if isinstance(x, Tensor) else like.new_full(like.shape, x) for x in entries], -1)


def gate_matrix(rows: list[list[Tensor | float]], like: Tensor) -> Tensor:
    """[..., n, n] from n rows of n tensors shaped as `like`, or numbers."""
    return torch.stack([gate_vector(row, like) for row in rows], -2)
