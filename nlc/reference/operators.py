"""What each operator computes, literally, for one token.

A value is a tensor [B, *axes] (a batch of 1 where it is the same for all rows), or, in the update of an outer level, a
dict from the name of a parameter to a tensor of its shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nlc.graph.constants import SMALLEST_NORM
from nlc.graph.ir import Axes

ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "sigmoid": torch.sigmoid,
    "logsigmoid": F.logsigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "softplus": F.softplus,
    "sin": torch.sin,
    "cos": torch.cos,
    "sign": torch.sign,
    "elu": F.elu,
    "erf": torch.erf,
    "neg": torch.neg,
    "sg": torch.detach,
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "pow": torch.pow,
    "min": torch.minimum,
    "max": torch.maximum,
    "lt": lambda x, y: (x < y).to(x.dtype),
    "le": lambda x, y: (x <= y).to(x.dtype),
    "gt": lambda x, y: (x > y).to(x.dtype),
    "ge": lambda x, y: (x >= y).to(x.dtype),
    "eq": lambda x, y: (x == y).to(x.dtype),
    "ne": lambda x, y: (x != y).to(x.dtype),
}

LAST_AXIS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "l2norm": lambda x, eps: x * torch.rsqrt((x * x).sum(-1, keepdim=True) + eps),
    "softmax": lambda x, eps: torch.softmax(x, -1),
    "rmsnorm": lambda x, eps: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps),
    "layernorm": lambda x, eps: (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, unbiased=False, keepdim=True) + eps),
}


def rope(x: Tensor, position: Tensor, theta: float) -> Tensor:
    """Channel i and channel i + K/2 of x [B, .., K], a plane, turned by position * theta^(-2 i / K); position [B, ..]."""
    half = x.shape[-1] // 2
    turned = []
    for i in range(half):
        angle, a, b = position * theta ** (-i / half), x[..., i], x[..., i + half]
        turned.append((a * torch.cos(angle) - b * torch.sin(angle), b * torch.cos(angle) + a * torch.sin(angle)))
    return torch.stack([a for a, _ in turned] + [b for _, b in turned], -1)


def align(x: Tensor, axes: Axes, target: Axes) -> Tensor:
    """View x [B, *axes] as [B, *target], with length 1 where an axis is missing."""
    if axes == target:
        return x
    order = [axes.index(axis) for axis in target if axis in axes]
    x = x.permute(0, *(1 + i for i in order))
    for i, axis in enumerate(target):
        if axis not in axes:
            x = x.unsqueeze(1 + i)
    return x


def elementwise(op: str, args: list[Any], axes: list[Axes], out: Axes) -> Any:
    """Apply an operator to operands whose axes are matched by name; dicts are mapped over."""
    for arg in args:
        if isinstance(arg, dict):
            return {name: ELEMENTWISE[op](*(a[name] if isinstance(a, dict) else a.squeeze(0) for a in args)) for name in arg}
    if len(set(axes)) > 1:
        args = [align(x, a, out) for x, a in zip(args, axes, strict=True)]
    return ELEMENTWISE[op](*args)


def newton_schulz(x: Tensor, steps: int, coefficients: tuple[float, float, float], dtype: torch.dtype) -> Tensor:
    """X <- a X + (b A + c A^2) X with A = X X^T, for the matrix on the last two axes, from X = x / |x|; each rounded to `dtype`."""
    a, b, c = coefficients
    given, x = x.dtype, x.to(dtype)
    X = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(steps):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return X.to(given)


def inverse_root(x: Tensor, power: float, eps: float) -> Tensor:
    """(x + eps I)^(-1 / power) of a symmetric matrix; eigenvalues below 0 count as 0."""
    values, vectors = torch.linalg.eigh(x)
    return vectors @ torch.diag_embed((values.clamp(min=0) + eps) ** (-1 / power)) @ vectors.mT


def recall_map(query: Tensor, query_axes: Axes, W: Tensor, per: Axes, inner: Axes, outer: Axes) -> Tensor:
    """z @ W: query [B, per + inner], W [B, per + inner + outer] -> [B, per + outer]."""
    q = align(query, query_axes, per + inner).flatten(1 + len(per)).unsqueeze(-2)
    copies = tuple(axis.size for axis in per)
    W = W.reshape(W.shape[0], *copies, -1, *(axis.size for axis in outer)).flatten(2 + len(per))
    return (q @ W).squeeze(-2).unflatten(-1, tuple(axis.size for axis in outer))


def solved_slope(slope: Callable[[Tensor], Tensor], pred: Tensor, scale: Tensor, width: int) -> Tensor:
    """e [.., width] with e = slope(pred - scale * e), for a slope that is an affine function of what is recalled."""
    at_rest = slope(pred)
    columns = []
    for i in range(width):
        unit = torch.zeros_like(pred).reshape(-1, width)
        unit[:, i] = 1
        columns.append((slope(pred + unit.reshape(pred.shape)) - at_rest).reshape(-1, width))
    J, r = torch.stack(columns, -1), scale.expand(pred.shape).reshape(-1, width, 1)
    system = torch.eye(width, dtype=pred.dtype) + J * r.mT
    return torch.linalg.solve(system, at_rest.reshape(-1, width)).reshape(pred.shape)


def contract(left: Tensor, right: Tensor, axes: list[Axes], copies: Axes) -> Tensor:
    """`W @ z`: the last axis of `left` with the first of `right`, for each copy.

    left [B, *copies, *A, c], right [B, *copies, c, *E] -> [B, *copies, *A, *E]; a copy that an operand does not tell apart is missing.
    """
    n = 1 + len(copies)
    left, right = _copies_first(left, axes[0], copies), _copies_first(right, axes[1], copies)
    before, after = left.shape[n:-1], right.shape[n + 1 :]
    product = left.reshape(*left.shape[:n], -1, left.shape[-1]) @ right.reshape(*right.shape[: n + 1], -1)
    return product.reshape(*product.shape[:n], *before, *after)


def outer(left: Tensor, right: Tensor, axes: list[Axes], copies: Axes) -> Tensor:
    """Products of each element of `left` and each of `right`: [B, *copies, *A], [B, *copies, *E] -> [B, *copies, *A, *E]."""
    n = 1 + len(copies)
    left, right = _copies_first(left, axes[0], copies), _copies_first(right, axes[1], copies)
    before, after = [1] * (left.dim() - n), [1] * (right.dim() - n)
    return left.reshape(*left.shape, *after) * right.reshape(*right.shape[:n], *before, *right.shape[n:])


def _copies_first(x: Tensor, axes: Axes, copies: Axes) -> Tensor:
    """x [B, *copies, *others], with length 1 for each copy it does not tell apart."""
    others = [i for i, axis in enumerate(axes) if axis not in copies]
    x = x.permute(0, *(1 + axes.index(axis) for axis in copies if axis in axes), *(1 + i for i in others))
    for i, axis in enumerate(copies):
        if axis not in axes:
            x = x.unsqueeze(1 + i)
    return x


PRODUCTS: dict[str, Callable[[Tensor, Tensor, list[Axes], Axes], Tensor]] = {"contract": contract, "outer": outer}
