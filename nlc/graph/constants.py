"""What operators make of numbers, computed when compiling; the number that is part of the norms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

NORM_EPS = 1e-6
"""Added under the root of `l2norm`, and of `rmsnorm` and `layernorm` unless they say `eps`."""

ROTARY_BASE = 10000.0
"""The base of the wave lengths of `rope`."""

QUINTIC = (3.4445, -4.775, 2.0315)
"""The coefficients of a step of Newton-Schulz that rises steepest at 0 (Jordan et al. 2024, Muon)."""

SMALLEST_NORM = 1e-7
"""What `newton_schulz` divides by at least."""

NUMERIC: dict[str, Callable[..., float]] = {
    "neg": lambda x: -x,
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "pow": lambda x, y: x**y,
    "min": min,
    "max": max,
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "abs": abs,
}


def number_of(op: str, values: Sequence[float]) -> float | int | None:
    """The value of an operator of `NUMERIC`; None where it has none that is real and finite."""
    try:
        value = NUMERIC[op](*values)
    except (ArithmeticError, ValueError):
        return None
    return None if isinstance(value, complex) or not math.isfinite(value) else value
