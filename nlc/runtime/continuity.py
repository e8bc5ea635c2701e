"""States of one rule that go on as states of another: nothing is dropped, and nothing begins anew, without being named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nlc.diagnostics import NOWHERE, DataError, Diagnostic
from nlc.graph.ir import LevelGraph
from nlc.graph.outer import aged
from nlc.language.wording import did_you_mean, listed
from nlc.runtime import codes

Key = tuple[str, str]
"""(A learner, a tensor that it has a state of); what a slow learner has added up is the learner `long.sum`."""
Names = Mapping[str, str | Sequence[str] | None]
"""What each saved learner goes on as: a learner, several where its tensors have other owners now, or None, which gives it up."""
SUM = ".sum"
STEP = "step"


@dataclass(frozen=True)
class Change:
    """From saved states to states of another rule.

    A saved learner that is not among `names` goes on under its own name. `first` are the states that learners begin with, `aged` the
    learners whose age is asked: it is counted for all states of a tensor together, so either all of them go on, or none.
    """

    names: Names
    saved: Mapping[Key, Tensor]
    first: Mapping[Key, Tensor]
    aged: Set[str]

    def taken_over(self) -> dict[Key, Tensor]:
        """The states to go on with. Raises DataError (NLC732), one diagnostic for each that has no place, or not this one."""
        problems = [*self._of_names(), *self._of_states()]
        if problems:
            raise DataError(problems)
        return {**self.first, **{(new, tensor): x for (old, tensor), x in self.saved.items() for new in self._places(old, tensor)}}

    @property
    def goes_on(self) -> bool:
        """Does any saved state go on?"""
        return any(map(self._targets, self._learners))

    @cached_property
    def _learners(self) -> list[str]:
        return sorted({learner for learner, _ in self.saved})

    def _targets(self, learner: str) -> tuple[str, ...]:
        """What a saved learner goes on as."""
        base = learner.removesuffix(SUM)
        given = self.names.get(base, base)
        bases = () if given is None else (given,) if isinstance(given, str) else tuple(given)
        return tuple(f"{each}{learner.removeprefix(base)}" for each in bases)

    def _places(self, learner: str, tensor: str) -> list[str]:
        return [target for target in self._targets(learner) if (target, tensor) in self.first]

    def _of_names(self) -> Iterator[Diagnostic]:
        for name in sorted(self.names.keys() - {learner.removesuffix(SUM) for learner in self._learners}):
            help = did_you_mean(name, self._learners) or f"there are states of {listed(self._learners)}"
            yield codes.StateMisfit(f"there is no saved state of `{name}`", NOWHERE, help)
        sources: dict[Key, str] = {}
        for learner, tensor in self.saved:
            for target in self._places(learner, tensor):
                if sources.setdefault((target, tensor), learner) != learner:
                    text = f"`{sources[target, tensor]}` and `{learner}` would both go on as `{target}`"
                    yield codes.StateMisfit(text, NOWHERE, "give up one of them")
        fresh = self.aged - {target for target, _ in sources}
        if fresh and sources:
            text = f"`{min(fresh)}` would begin anew; its age, which its rule asks for, is counted for all states of a tensor together"
            yield codes.StateMisfit(text, NOWHERE, "say which saved state it goes on from, or give up all of them")

    def _of_states(self) -> Iterator[Diagnostic]:
        wanted = listed(sorted({learner for learner, _ in self.first}) or ["none"])
        for (learner, tensor), x in self.saved.items():
            targets, places = self._targets(learner), self._places(learner, tensor)
            if targets and not places:
                text = f"the saved state of `{learner}`, of {tensor}, would go on as {listed(targets)}, of which there is none"
                yield codes.StateMisfit(text, NOWHERE, f"say what it goes on as, of {wanted}, or None, which gives it up")
            for place in places:
                needed = self.first[place, tensor].shape
                if x.shape != needed:
                    text = f"the state `{learner}` of {tensor} has shape {list(x.shape)}; {list(needed)} is needed for `{place}`"
                    yield codes.StateMisfit(text, NOWHERE, "give it up, None")


def of_model(graph: LevelGraph, saved: Mapping[str, Tensor], first: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """States of outer levels of a model, by the keys of `initial_optimizer`, from those of another spec with the same parameters."""
    parameters = sorted((graph.parameter_name(m) for m in graph.parameters), key=len, reverse=True)

    def split(key: str) -> Key:
        tensor = next((name for name in parameters if key.endswith(f".{name}")), "")
        return (key.removesuffix(f".{tensor}") if tensor else key), f"`{tensor}`" if tensor else "all tensors"

    keys = {split(key): key for key in first if key != STEP}
    kept = {split(key): x for key, x in saved.items() if key != STEP}
    change = Change(names, kept, {place: first[key] for place, key in keys.items()}, aged(graph))
    found = change.taken_over()
    step = saved[STEP] if change.goes_on else torch.zeros_like(saved[STEP])
    return {STEP: step, **{keys[place]: x for place, x in found.items()}}
