"""Settings of a whole process that repeats the same step: for programs that train and for benchmarks, not for libraries."""

from __future__ import annotations

import ctypes

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of the GNU C library
NEVER = -1


def set_up() -> dict[str, bool]:
    """Make the process fit for long runs, before its first tensor; says which settings the machine knows."""
    return {"freed memory is kept": keep_freed_memory(), "subnormal numbers are flushed": torch.set_flush_denormal(True)}


def keep_freed_memory() -> bool:
    """Keep freed memory for the next step instead of handing it back to the system; True where the C library knows how.

    Every tensor above 32 MiB, and every heap that shrinks, otherwise costs a cleared and newly mapped page for each 4 KiB of
    every step (`bench/results`: 1.6 times the time of a memory at 4096 tokens). The process stays as large as it once was.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(M_MMAP_MAX, 0) == 1 and mallopt(M_TRIM_THRESHOLD, NEVER) == 1
