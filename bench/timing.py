"""Steps timed in turn, so that whatever else the machine does falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

Step = Callable[[], object]


def once(step: Step) -> float:
    """Seconds."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def medians(steps: dict[str, Step], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of the first call of each, and the median of the others, one of each in turn."""
    first = {name: once(step) for name, step in steps.items()}
    times = [{name: once(step) for name, step in steps.items()} for _ in range(rounds)]
    return first, {name: statistics.median(each[name] for each in times) for name in steps}
