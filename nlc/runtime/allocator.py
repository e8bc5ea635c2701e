"""The C allocator of a process that repeats the same step."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of the GNU C library
NEVER = -1


def keep_freed_memory() -> bool:
    """Keep freed memory for the next step instead of handing it back to the system; True where the C library knows how.

    Every tensor above 32 MiB, and every heap that shrinks, otherwise costs a cleared and newly mapped page for each 4 KiB of
    every step (`bench/results`: 1.6 times the time of a memory at 4096 tokens). For programs that train, not for libraries:
    the process stays as large as it once was.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(M_MMAP_MAX, 0) == 1 and mallopt(M_TRIM_THRESHOLD, NEVER) == 1
