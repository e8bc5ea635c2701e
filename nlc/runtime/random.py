"""Random numbers that depend on a seed and a place, not on a history: number i is the same whatever was drawn before.

So nothing about randomness has to be saved with a checkpoint. The generator is SplitMix64 (Steele, Lea and Flood 2014).
"""

from __future__ import annotations

_MASK = (1 << 64) - 1


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def integer(below: int, seed: int, *place: int) -> int:
    """A whole number from 0 to `below` - 1."""
    return (_bits(seed, *place) * below) >> 64


def uniform(seed: int, *place: int) -> float:
    """A number in [0, 1)."""
    return (_bits(seed, *place) >> 11) * 2.0**-53


def _bits(seed: int, *place: int) -> int:
    x = _mix(seed & _MASK)
    for i in place:
        x = _mix((x + (i + 1) * 0x9E3779B97F4A7C15) & _MASK)
    return x
