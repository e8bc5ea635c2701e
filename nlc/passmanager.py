"""Passes and the manager that runs them: verifying before and after, timing, dumping. A pass itself never prints."""

from __future__ import annotations

import enum
import importlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from nlc.diagnostics import UsageError
from nlc.graph.ir import LevelGraph
from nlc.graph.verify import verify


class Numerics(enum.Enum):
    """What a pass may change: nothing (bitwise), or rounding within the pass's `bound` (float64, relative)."""

    EXACT = "exact"
    TOLERANCE = "tolerance"


@dataclass(frozen=True)
class Pass(ABC):
    """LevelGraph -> LevelGraph, pure. Fields are options. No change means that the same object is returned.

    `required` passes cannot be left out: without them the graph has no program.
    """

    name: ClassVar[str]
    numerics: ClassVar[Numerics]
    bound: ClassVar[float] = 0.0
    required: ClassVar[bool] = False

    @abstractmethod
    def run(self, graph: LevelGraph) -> LevelGraph: ...


REGISTRY: dict[str, str] = {
    "expand-templates": "nlc.passes.expand_templates:ExpandTemplates",
    "fold-constants": "nlc.passes.fold_constants:FoldConstants",
    "share-flows": "nlc.passes.share_flows:ShareFlows",
    "drop-dead": "nlc.passes.drop_dead:DropDead",
    "hold-slow-flows": "nlc.passes.hold_slow_flows:HoldSlowFlows",
    "fuse-learners": "nlc.passes.fuse_learners:FuseLearners",
    "classify": "nlc.passes.classify:Classify",
    "bucket-frequencies": "nlc.passes.bucket_frequencies:BucketFrequencies",
    "fuse-projections": "nlc.passes.fuse_projections:FuseProjections",
    "choose-form": "nlc.passes.choose_form:ChooseForm",
}
"""Where each pass lives; imported when it is needed."""

DEFAULT: tuple[str, ...] = (
    "expand-templates",
    "fold-constants",  # a keep of 1 or a rate of 0 decides the class
    "share-flows",
    "drop-dead",  # after sharing: a shared flow may lose its last reader
    "hold-slow-flows",  # after drop-dead: what nobody reads needs no state
    "fuse-learners",  # before the class is found: of one memory, and not of each
    "classify",
    "fuse-projections",  # after drop-dead: a dead projection must not widen a product
    "bucket-frequencies",  # needs the class: only learners of one class share a sweep
    "choose-form",  # needs the bucket: its learners run in one form
)
"""The default pipeline, in order."""


def find_pass(name: str) -> type[Pass]:
    if name not in REGISTRY:
        import difflib

        near = difflib.get_close_matches(name, REGISTRY, n=1, cutoff=0.6)
        raise UsageError(f"there is no pass `{name}`; {f'did you mean `{near[0]}`?' if near else 'passes: ' + ', '.join(REGISTRY)}")
    module, _, attribute = REGISTRY[name].partition(":")
    found: type[Pass] = getattr(importlib.import_module(module), attribute)
    return found


@dataclass(frozen=True)
class Stage:
    """One pass that ran: the graph after it, whether it changed anything, and the seconds it took."""

    name: str
    graph: LevelGraph
    changed: bool
    seconds: float


@dataclass(frozen=True)
class PassManager:
    """Runs passes in order. The graph is verified before the first and after each."""

    passes: tuple[Pass, ...] = field(default_factory=lambda: pipeline())

    def run(self, graph: LevelGraph) -> tuple[LevelGraph, tuple[Stage, ...]]:
        verify(graph)
        stages: list[Stage] = []
        for each in self.passes:
            start = time.perf_counter()
            after = each.run(graph)
            seconds = time.perf_counter() - start
            if after is not graph:
                verify(after)
            stages.append(Stage(each.name, after, after is not graph, seconds))
            graph = after
        return graph, tuple(stages)


def pipeline(
    only: Sequence[str] | None = None,
    without: Iterable[str] = (),
    stop_after: str | None = None,
    exact: bool = False,
    options: dict[str, dict[str, object]] | None = None,
) -> tuple[Pass, ...]:
    """The default passes, or a part of them. `only` keeps required passes; `exact` leaves out what changes rounding."""
    without = tuple(without)
    for name in (*(only or ()), *without, *((stop_after,) if stop_after else ())):
        find_pass(name)
    chosen: list[Pass] = []
    for name in DEFAULT:
        kind = find_pass(name)
        if name in without and kind.required:
            raise UsageError(f"the pass `{name}` cannot be left out: without it the graph has no program")
        wanted = (only is None or name in only) and name not in without and not (exact and kind.numerics is not Numerics.EXACT)
        if wanted or kind.required:
            chosen.append(kind(**(options or {}).get(name, {})))
        if name == stop_after:
            break
    return tuple(chosen)
