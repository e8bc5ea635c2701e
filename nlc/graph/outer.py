"""The update of weights by their rule: what differs from tensor to tensor, what is one for all of them, and how often it changes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from nlc.graph.ir import ANY, Flow, Init, Learner, LevelGraph, root_of, size_of
from nlc.graph.order import effective_clock
from nlc.graph.state import ZEROS


@dataclass(frozen=True)
class Outer:
    """An owner of weights and the learners of its rule, `inner`; flows and learners that are one for all its tensors are `shared`."""

    graph: LevelGraph
    owner: Learner

    @cached_property
    def inner(self) -> tuple[Learner, ...]:
        """The learners of the rule, those of their rules too."""
        found = self.graph.learners.values()
        return tuple(m for m in found if m.host is not None and m.writes and root_of(self.graph.learners, m.id) == self.owner.id)

    @property
    def ends(self) -> tuple[str, ...]:
        """The flows that the rule ends in: steps and keeps, its learners' too."""
        return tuple(id for m in (self.owner, *self.inner) for id in (m.keep, m.rule.keep, m.rule.step) if id is not None)

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
            if flow.op == "size" or (flow.attr("learner") in each and flow.op not in ("age", "due")):
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
        mine = effective_clock(self.graph, learner)
        assert mine is not None
        return mine.period // self.steps

    @cached_property
    def periods(self) -> tuple[int, ...]:
        """The periods of its slow learners, in updates, each once."""
        return tuple(sorted({self.period(m) for m in self.inner} - {1}))

    def due_together(self) -> tuple[tuple[int, ...], ...]:
        """The sets of periods that end at one update, none first."""
        sets = itertools.chain.from_iterable(itertools.combinations(self.periods, n) for n in range(len(self.periods) + 1))
        ends = [math.lcm(*chosen) if chosen else 0 for chosen in sets]
        return tuple(dict.fromkeys(tuple(p for p in self.periods if end and end % p == 0) for end in ends))

    def is_due(self, learner: Learner, due: tuple[int, ...]) -> bool:
        """Is a learner of the rule updated where these periods end?"""
        return self.period(learner) in (1, *due)

    def gathered(self, learner: Learner) -> tuple[Flow, ...]:
        """What a slow learner adds up over its period, where it does."""
        return tuple(f for f in self.graph.flows.values() if f.op == "folded" and f.attr("learner") == learner.id)

    def seed(self, learner: Learner) -> int:
        """Of the numbers that its first state is drawn with, the same for all tensors of one shape."""
        return self.inner.index(learner)

    def sum_of(self, learner: str) -> str:
        """The key of what a slow learner has added up so far."""
        return f"{learner}.sum"

    def learner_of(self, key: str) -> str:
        """The learner that a key of a state belongs to."""
        return key if key in self.graph.learners else key.removesuffix(".sum")

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The states that there is one of for each tensor: learners, and what slow ones have added up."""
        return tuple(key for m in self.of_tensors for key in (m.id, *(self.sum_of(m.id) for _ in self.gathered(m))))

    def shape(self, learner: Learner, seen: Sequence[int]) -> tuple[int, ...]:
        """The shape of a state of a tensor that the rule sees with these sizes: the same, or that of its own axes."""
        if ANY in learner.axes:
            return tuple(seen)
        sizes = {} if ANY in self.owner.axes else dict(zip((axis.name for axis in self.owner.axes), seen, strict=True))
        return tuple(sizes.get(axis.name, axis.size) for axis in learner.axes)

    @property
    def unit(self) -> str:
        """The clock of the weights: `step`, or `token`."""
        assert self.owner.clock is not None
        return self.owner.clock.unit

    @property
    def steps(self) -> int:
        """The period of the weights, in ticks of their clock."""
        assert self.owner.clock is not None
        return self.owner.clock.period

    @cached_property
    def names(self) -> dict[str, str]:
        """What the keys of states call each tensor, by its id: the name of a parameter, that of a tensor of the store."""
        learners = self.graph.learners
        if self.unit == "step":
            return {id: self.graph.parameter_name(learners[id]) for id in self.owner.owns}
        return {id: learners[id].store.tensors[0].name for id in self.owner.owns}

    @cached_property
    def reads_rows(self) -> bool:
        """Does the rule read what its tensors are multiplied with?"""
        return any(flow.op == "rows" and flow.attr("learner") == self.owner.id for flow in self.graph.flows.values())

    def accumulated(self, parameter: str) -> str:
        """The key of the gradients of a parameter that have been added up."""
        return f"{self.owner.id}.accumulated.{parameter}"

    def totals(self, *roots: str) -> tuple[Flow, ...]:
        """The sums over all tensors that these flows are made of, in order."""
        needed = self.graph.upstream(*roots)
        return tuple(flow for flow in self.graph.flows.values() if flow.op == "total" and flow.id in needed)


@dataclass(frozen=True)
class Matrix:
    """How a weight is seen by a rule for matrices [O, I], values times keys.

    It has `copies` axes that count matrices, then `first` axes of its keys, then those of its values; `transposed`: the values first.
    """

    copies: int
    first: int
    transposed: bool


def matrix_of(learner: Learner) -> Matrix | None:
    """None for a tensor that is no matrix: a vector, the taps of a convolution."""
    store = learner.store
    if store.form not in ("map", "table", "tensor") or not store.in_axes or not store.out_axes:
        return None
    return Matrix(len(learner.per), len(store.out_axes if store.transposed else store.in_axes), store.transposed)


@dataclass(frozen=True)
class OuterState:
    """A tensor that an outer level keeps beside its weights: of one `parameter`, or of all (None).

    `like`: it has the shape of the parameter, and is seen as it is seen. `init` is its first value, drawn
    with `seed` where it is drawn.
    """

    key: str
    learner: str
    parameter: str | None
    shape: tuple[int, ...]
    like: bool
    init: Init
    seed: int = 0


def outer_states(graph: LevelGraph) -> tuple[OuterState, ...]:
    """The states of all outer levels, by the keys that a run keeps them under; beside them `step` counts updates."""
    return tuple(state for outer in owners(graph) for state in states_of(outer))


def states_of(outer: Outer) -> Iterator[OuterState]:
    """The states of one outer level."""
    graph = outer.graph
    for id, name in outer.names.items() if outer.owner.accumulates else ():
        shape = tuple(axis.size for axis in graph.learners[id].axes)
        yield OuterState(outer.accumulated(name), outer.owner.id, name, shape, True, ZEROS)
    for m in outer.shared:
        yield OuterState(m.id, m.id, None, (), False, m.init)
    for key in outer.keys:
        m = graph.learners[outer.learner_of(key)]
        for id, name in outer.names.items():
            parameter = graph.learners[id]
            like = m.axes == outer.owner.axes
            shape = tuple(axis.size for axis in parameter.axes) if like else _own_shape(outer, m, parameter)
            yield OuterState(f"{key}.{name}", m.id, name, shape, like, m.init if key == m.id else ZEROS, outer.seed(m))


def aged(graph: LevelGraph) -> frozenset[str]:
    """The learners of rules whose age is asked."""
    asked = {str(flow.attr("learner")) for flow in graph.flows.values() if flow.op == "age"}
    return frozenset(id for id in asked if graph.learners[id].host is not None)


def held_by(graph: LevelGraph, learner: str) -> dict[str, str]:
    """What a learner over weights holds: the key of its state for each parameter."""
    return {str(each.parameter): each.key for each in outer_states(graph) if each.key == f"{learner}.{each.parameter}"}


def _own_shape(outer: Outer, learner: Learner, parameter: Learner) -> tuple[int, ...]:
    """The shape of a state that is not of the shape of its parameter; one for each copy of a matrix."""
    copies = () if ANY in outer.owner.axes or not learner.axes else tuple(axis.size for axis in parameter.per)
    return copies + outer.shape(learner, (size_of(parameter.store.out_axes), size_of(parameter.store.in_axes)))


def owners(graph: LevelGraph) -> tuple[Outer, ...]:
    """The outer levels: learners that own weights."""
    return tuple(each for each in movers(graph) if each.unit == "step")


def loss_levels(graph: LevelGraph) -> tuple[Outer, ...]:
    """The learners of the loss that move states while tokens come."""
    return tuple(each for each in movers(graph) if each.unit == "token")


def movers(graph: LevelGraph) -> tuple[Outer, ...]:
    """All learners of the loss."""
    return tuple(Outer(graph, m) for m in graph.learners.values() if m.selector is not None and m.owns)
