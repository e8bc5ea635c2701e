"""The setting under which equal inputs give equal bits: a fixed number of threads and deterministic operators."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def default_threads() -> int:
    return torch.get_num_threads()


@contextlib.contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Set it, and set back what was before. torch.compile guards on both, so everything of a run belongs inside."""
    before = torch.get_num_threads()
    algorithms, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Filling what is overwritten anyway would cost time and change no result.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
