"""Progress of training on a terminal; nothing where nobody watches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from nlc.runtime.run_folder import Record


@contextlib.contextmanager
def on_terminal(steps: int, title: str = "training") -> Iterator[Callable[[Record], None]]:
    """A callback for `train(progress=..)` that draws a bar on stderr, or does nothing if that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda record: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    validation = ""
    with Progress(*columns, TextColumn("{task.fields[measured]}"), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=steps, measured="compiling")

        def draw(record: Record) -> None:
            nonlocal validation
            if "validation_bits_per_byte" in record:
                validation = f", validation {record['validation_bits_per_byte']:.3f}"
            text = f"{record['bits_per_byte']:.3f} bits/byte{validation}, {record['tokens_per_second']:,.0f} tokens/s"
            bar.update(task, completed=record["step"], measured=text)

        yield draw
