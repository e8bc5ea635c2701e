"""Metrics of a run for TensorBoard, beside its metrics.jsonl."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from nlc.runtime.run_folder import Record


@contextlib.contextmanager
def writing(run: Path, step: int) -> Iterator[Callable[[Record], None]]:
    """A function that writes a record; what an interrupted run wrote after `step` is marked as void."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def log(record: Record) -> None:
        for name, value in record.items():
            if name != "step":
                writer.add_scalar(name, value, int(record["step"]))

    try:
        yield log
    finally:
        writer.close()
