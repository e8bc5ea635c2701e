"""What the ops are measured against: the naive functions of fla-core under the names of our inputs, and forms written by hand.

A peer takes the inputs of the op in the order of its spec, [B, T, H, ..], and returns its output [B, T, H, V].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nlc.graph.constants import NORM_EPS

Rule = Callable[..., Tensor]


class Peer(NamedTuple):
    chunk: Rule | None
    token: Rule | None
    note: str = ""


NO_NAIVE = "fla-core has no naive function of this memory"
LEFT_OUT = {
    "dla": NO_NAIVE,
    "longhorn": NO_NAIVE,
    "moneta": NO_NAIVE,
    "memora": NO_NAIVE,
    "omega_net": NO_NAIVE,
    "atlas": NO_NAIVE,
    "mlstm": NO_NAIVE,
    "oja": NO_NAIVE,
    "omega": NO_NAIVE,
    "ttt_mlp": NO_NAIVE,
    "yaad": NO_NAIVE,
    "titans_mlp": "the Titans function of fla-core has a linear memory; see the section titans",
    "ttt_linear": "fla-core takes the rate of the reading token and adds the map, not the query, to the norm; see the section ttt",
    "softmax_attention": "no matrix memory",
    "sliding_window_attention": "no matrix memory",
}
"""Ops without a peer in fla-core, and why."""


def fla_peers() -> dict[str, Peer]:
    """All without scale, log gates as ours; nothing where fla-core is not installed."""
    try:
        from fla.ops.comba import naive as comba
        from fla.ops.delta_rule import naive as delta
        from fla.ops.gated_delta_product import naive as product
        from fla.ops.gated_delta_rule import naive as gated
        from fla.ops.generalized_delta_rule.dplr import naive as dplr
        from fla.ops.gla import naive as gla
        from fla.ops.kda import naive as kda
        from fla.ops.linear_attn import naive as linear
        from fla.ops.mesa_net import naive as mesa
        from fla.ops.momentum_delta_rule import naive as momentum
        from fla.ops.simple_gla import naive as simple
    except ImportError:
        return {}

    def unscaled(function: Callable[..., Any]) -> Rule:
        """Heads before tokens, and queries that the function will divide by sqrt(K)."""
        return lambda q, *x: function(*(y.transpose(1, 2) for y in (q * q.shape[-1] ** 0.5, *x)))[0].transpose(1, 2)

    def constant(function: Callable[..., Any]) -> Rule:
        return lambda q, k, v: function(q, k, v, retention_gates(q.shape[2]).expand(q.shape[:3]), scale=1.0)[0]

    def generalised(function: Callable[..., Any]) -> Rule:
        rule = unscaled(function)
        return lambda q, kt, kap, a, v, w: rule(q, kt, v, kap, -a * kap, w)

    def feature(x: Tensor) -> Tensor:
        return torch.nn.functional.elu(x) + 1

    def product_token(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> Tensor:
        k, v, b = (x.flatten(1, 2) for x in (k, v, beta))
        return product.naive_recurrent_gated_delta_product(q, k, v, g, b, 1.0, num_householder=beta.shape[2])[0]

    def with_momentum(function: Callable[..., Any]) -> Rule:
        return lambda q, k, v, theta, eta, alpha: function(
            q=q, k=k, v=v, p=k, log_alpha=alpha.log(), log_mu=eta.log(), beta=torch.ones_like(eta), eta=theta, scale=1.0
        )[0]

    def one_ridge(function: Callable[..., Any], **more: int) -> Rule:
        """Its ridge does not depend on the token."""
        return lambda q, k, v, beta, g, lam: function(q, k, v, g, lam[0, 0], beta, **more)[0]

    return {
        "linear_attention": Peer(
            lambda q, k, v: linear.naive_chunk_linear_attn(q, k, v, scale=1.0),
            lambda q, k, v: linear.naive_recurrent_linear_attn(q, k, v, scale=1.0)[0],
        ),
        "normalised_linear_attention": Peer(
            lambda q, k, v: linear.naive_chunk_linear_attn(feature(q), feature(k), v, scale=1.0, normalize=True),
            lambda q, k, v: linear.naive_recurrent_linear_attn(feature(q), feature(k), v, scale=1.0, normalize=True)[0],
            "elu(x) + 1 is taken before their function",
        ),
        "scalar_decay": Peer(
            lambda q, k, v, g: simple.naive_chunk_simple_gla(q, k, v, g, scale=1.0)[0],
            lambda q, k, v, g: simple.naive_recurrent_simple_gla(q, k, v, g, scale=1.0)[0],
        ),
        "retnet": Peer(
            constant(simple.naive_chunk_simple_gla),
            constant(simple.naive_recurrent_simple_gla),
            "their simple_gla with the gates of retention; their naive retention is quadratic in T",
        ),
        "gla": Peer(None, lambda q, k, v, g: gla.naive_recurrent_gla(q * q.shape[-1] ** 0.5, k, v, g)[0]),
        "delta_rule": Peer(unscaled(delta.delta_rule_chunkwise), unscaled(delta.delta_rule_recurrence)),
        "gated_delta_rule": Peer(
            lambda q, k, v, beta, g: gated.naive_chunk_gated_delta_rule(q, k, v, g, beta, scale=1.0)[0],
            lambda q, k, v, beta, g: gated.naive_recurrent_gated_delta_rule(q, k, v, beta, g, scale=1.0)[0],
        ),
        "gated_delta_product": Peer(None, product_token),
        "kda": Peer(
            lambda q, k, v, beta, g: kda.naive_chunk_kda(q, k, v, g, beta, scale=1.0)[0],
            lambda q, k, v, beta, g: kda.naive_recurrent_kda(q, k, v, g, beta, scale=1.0)[0],
        ),
        "separate_probe_key": Peer(
            lambda q, k, p, v, beta, g: comba.naive_chunk_comba(q, k, v, p * g.exp().unsqueeze(-1), g, beta, scale=1.0)[0],
            lambda q, k, p, v, beta, g: comba.naive_recurrent_comba(q, k, v, p, beta, g, scale=1.0)[0],
            "their comba; its chunk function probes the state before the decay, so it gets exp(g) p",
        ),
        "rwkv7": Peer(
            generalised(dplr.dplr_chunkwise), generalised(dplr.dplr_recurrence), "their dplr, a diagonal matrix plus one of rank 1"
        ),
        "momentum_delta": Peer(
            with_momentum(momentum.chunk_momentum_delta_rule_ref), with_momentum(momentum.recurrent_momentum_delta_rule_ref)
        ),
        "mesa": Peer(
            one_ridge(mesa.naive_mesa_net_CG, chunk_size=64),
            one_ridge(mesa.naive_mesa_net_exact),
            "their exact solve; T = 128, its backward is quadratic in T",
        ),
    }


def retention_gates(heads: int) -> Tensor:
    """The table of the paper, log(1 - 2^(-5 - h))."""
    return torch.log1p(-(2.0 ** (-5.0 - torch.arange(heads))))


def linear_attention_by_hand(q: Tensor, k: Tensor, v: Tensor, chunk: int) -> Tensor:
    """Scores within a chunk, and the sum of k v^T over the chunks before it."""
    q, k, v = (x.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4) for x in (q, k, v))  # [B, H, N, C, K]
    own = k.mT @ v
    o = (q @ k.mT).tril() @ v + q @ (own.cumsum(2) - own)
    return o.permute(0, 2, 3, 1, 4).flatten(1, 2)


def ttt_linear_by_hand(q: Tensor, k: Tensor, v: Tensor, eta: Tensor, w: Tensor, b: Tensor, chunk: int) -> Tensor:
    """A loop over chunks, each with its gradients by formula at the state before it and the dual form within.

    `split` and not slices: the backward of slices is quadratic in T.
    """
    eta = eta.unsqueeze(-1)
    pieces = zip(*(x.transpose(1, 2).split(chunk, 2) for x in (q, k, v, eta, w, b)), strict=True)
    state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], q.shape[3])
    bias = q.new_zeros(q.shape[0], q.shape[2], 1, q.shape[3])
    outputs = []
    for q_i, k_i, v_i, eta_i, w_i, b_i in pieces:
        hat, root = normalised(k_i @ state + bias)
        d_hat = (k_i + hat * w_i + b_i - v_i) * w_i
        d_map = (d_hat - d_hat.mean(-1, keepdim=True) - hat * (d_hat * hat).mean(-1, keepdim=True)) * root
        steps = eta_i * d_map
        seen = q_i @ state + bias - (q_i @ k_i.mT).tril() @ steps - steps.cumsum(2)
        outputs.append(q_i + normalised(seen)[0] * w_i + b_i)
        state = state - k_i.mT @ steps
        bias = bias - steps.sum(2, keepdim=True)
    return torch.cat(outputs, 2).transpose(1, 2)


def normalised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Along the last axis, and the factor."""
    x = x - x.mean(-1, keepdim=True)
    root = torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS)
    return x * root, root
