"""Many sessions that learn while they are served: one call for all of them, or one call each. Written to bench/results/streaming.json.

256 sessions take one token, with levels of their own each: first Hope of 1 M parameters (models/hope), then a model whose sessions hold at
most 64 KB. The token lies inside a segment; then the mean of 64 tokens, at one of which the levels that learn so often are updated.
Both sides run the generated module as it is (backend eager), which Inductor would compile for the two numbers of rows.
Run: python -m bench.streaming [SECTION ..] [--quick]
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import nlc
from bench.algebra import Row, row
from bench.memories import RESULTS
from bench.sections import run
from bench.timing import medians
from nlc.runtime.compiled import CompiledSpec
from nlc.runtime.session import Session

SMALL = Path(__file__).parent / "specs" / "streaming_small.yaml"
QUICK = {"d": 16, "m": 16, "h": 16, "layers": 1}
PERIOD = 64
AGREE = 1e-3
"""Between the logits of both sides, in float32."""


def served(spec: str | Path, dims: dict[str, int], rows: int, backend: str) -> tuple[CompiledSpec, Session, list[Session]]:
    """Sessions in one, and the same ones by themselves, each with tensors of its own."""
    compiled = nlc.compile(spec, dims=dims, backend=backend)
    together = compiled.session(batch=rows)
    return compiled, together, together.split()


def stepped(together: Session, alone: list[Session], tokens: int, rounds: int) -> tuple[dict[str, float], float]:
    """Seconds of one token of all sessions, after so many others, and how much the logits differ."""
    x = torch.randint(0, 256, (together.rows, tokens + 1), generator=torch.Generator().manual_seed(0))
    if tokens:
        together = together.fork()
        together.feed(x[:, :tokens])
        alone = together.split()
    made: dict[str, Tensor] = {}

    def one_call() -> None:
        made["together"] = together.fork().feed(x[:, tokens:])[0]["logits"]

    def one_each() -> None:
        made["alone"] = torch.cat([session.fork().feed(x[i : i + 1, tokens:])[0]["logits"] for i, session in enumerate(alone)])

    _, seconds = medians({"together": one_call, "alone": one_each}, rounds)
    return seconds, float((made["together"] - made["alone"]).abs().max())


def rows_of(what: str, spec: str | Path, dims: dict[str, int], bar: float, quick: bool) -> Iterator[Row]:
    """A row for a token inside a segment, and one for the mean of a period."""
    rows, rounds = (8, 1) if quick else (256, 3)
    compiled, together, alone = served(spec, dims, rows, "eager")
    held = together.state_bytes()
    weights = sum(p.numel() * p.element_size() for name, p in compiled.named_parameters() if not name.endswith(".init"))
    level = sum(level_bytes(together).values())
    more: dict[str, object] = {
        "state_bytes_of_a_session": held.per_row,
        "of_levels": sum(held.levels.values()),
        "of_memories": held.memories,
    }
    more |= {"bytes_read_a_token": {"of_weights_once": weights, "of_each_session": level + held.memories}}
    inside, difference = stepped(together, alone, 0, rounds)
    boundary, other = stepped(together, alone, PERIOD, 1)
    assert max(difference, other) < AGREE, (difference, other)
    more["difference"] = max(difference, other)
    mean = {name: ((PERIOD - 1) * inside[name] + boundary[name]) / PERIOD for name in inside}
    for place, seconds in (("inside a segment", inside), (f"mean of a period of {PERIOD}", mean)):
        speed = {f"{name}_ms": round(1000 * each, 2) for name, each in seconds.items()}
        case = f"{rows} sessions, one token, {place}, the generated module as it is"
        yield row(f"{what}, {place}", "one call each", case, seconds["alone"] / seconds["together"], ">=", bar, **speed, **more)


def level_bytes(session: Session) -> dict[str, int]:
    """Of the tensors that a session reads of each level."""
    found = session.compiled.served.levels.items()
    state = session.state
    return {id: sum(state[key][0].numel() * state[key].element_size() for key in level.tensors) for id, level in found}


def large(quick: bool) -> Iterator[Row]:
    """Hope of 1 M parameters: a session holds megabytes."""
    yield from rows_of("sessions of Hope", "models/hope", QUICK if quick else {}, 4, quick)


def small(quick: bool) -> Iterator[Row]:
    """A session of at most 64 KB."""
    for each in rows_of("small sessions", SMALL, {}, 20, quick):
        assert each["state_bytes_of_a_session"] <= 64 * 1024, each
        yield each


if __name__ == "__main__":
    run(__doc__, RESULTS / "streaming.json", {"large": large, "small": small}, dtype="float32")
