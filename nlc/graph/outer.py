"""The update of weights by their rule: what differs from tensor to tensor, what is one for all of them, and how often it changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from nlc.graph.ir import Flow, Learner, LevelGraph
from nlc.graph.state import root_of


@dataclass(frozen=True)
class Outer:
    """An owner of weights and the learners of its rule, `inner`; flows and learners that are one for all its tensors are `shared`."""

    graph: LevelGraph
    owner: Learner

    @cached_property
    def inner(self) -> tuple[Learner, ...]:
        """The learners of the rule, those of their rules too."""
        found = self.graph.learners.values()
        return tuple(m for m in found if m.host is not None and m.writes and root_of(self.graph, m.id) == self.owner.id)

    @cached_property
    def shared(self) -> tuple[Learner, ...]:
        return tuple(m for m in self.inner if m.id not in self.each)

    @cached_property
    def of_tensors(self) -> tuple[Learner, ...]:
        """The learners of the rule that there is one of for each tensor."""
        return tuple(m for m in self.inner if m.id in self.each)

    @cached_property
    def each(self) -> frozenset[str]:
        """Ids of the learners that differ from tensor to tensor."""
        found = {self.owner.id, *(m.id for m in self.inner if m.axes)}
        while True:
            more = {m.id for m in self.inner if m.id not in found and any(self._told(id, found) for id in self._read_by(m))}
            if not more:
                return frozenset(found)
            found |= more

    def _read_by(self, learner: Learner) -> Iterator[str]:
        yield from (id for _, id in self.graph.needs_of(learner))

    def _told(self, id: str, each: set[str] | frozenset[str]) -> bool:
        """Does a flow depend on one tensor of several? A total is the same for all."""
        todo, seen = [id], set[str]()
        while todo:
            flow = self.graph.flows[todo.pop()]
            if flow.id in seen or flow.op == "total":
                continue
            seen.add(flow.id)
            if flow.op == "size" or (flow.attr("learner") in each and flow.op != "age"):
                return True
            todo += flow.args
        return False

    @cached_property
    def differing(self) -> frozenset[str]:
        """Ids of the flows that differ from tensor to tensor."""
        hosts = {self.owner.id, *(m.id for m in self.inner)}
        needed = self.graph.upstream(*(id for host in hosts for id in self._read_by(self.graph.learners[host])))
        return frozenset(id for id in needed if self._told(id, self.each))

    def period(self, learner: Learner) -> int:
        """Updates of the owner between two updates of a learner of its rule."""
        count, at = 1, learner
        while at.host is not None:
            count *= at.clock.period if at.clock is not None else 1
            at = self.graph.learners[at.host]
        return count

    def totals(self, *roots: str) -> tuple[Flow, ...]:
        """The sums over all tensors that these flows are made of, in order."""
        needed = self.graph.upstream(*roots)
        return tuple(flow for flow in self.graph.flows.values() if flow.op == "total" and flow.id in needed)


def owners(graph: LevelGraph) -> tuple[Outer, ...]:
    """The outer levels: learners that own weights."""
    return tuple(Outer(graph, m) for m in graph.learners.values() if m.selector is not None and m.owns)
