"""Drop what nothing reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from nlc.graph.ir import Learner, LevelGraph
from nlc.graph.linear import LinearForm
from nlc.graph.rewrite import flows_of_form, keep_only
from nlc.graph.segments import begun_as
from nlc.passmanager import Numerics, Pass


@dataclass(frozen=True)
class DropDead(Pass):
    """Drop what nothing reads.

    Before: flows and learners from which no output and no loss can be reached.
    After: they are gone, with their parameters and states. Inputs stay: they belong to the interface.
    """

    name: ClassVar[str] = "drop-dead"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, graph: LevelGraph) -> LevelGraph:
        flows, learners = live(graph)
        flows |= set(graph.inputs)
        if len(flows) == len(graph.flows) and len(learners) == len(graph.learners):
            return graph
        kept = keep_only(graph, flows, learners)
        owners = {id: replace(m, owns=tuple(p for p in m.owns if p in learners)) for id, m in kept.learners.items()}
        return kept.with_(learners=owners)


def live(graph: LevelGraph) -> tuple[set[str], set[str]]:
    """The flows and learners that outputs and loss depend on, at this tick or through a state."""
    flows: set[str] = set()
    learners: set[str] = set()
    todo = list(graph.roots())
    for owner in graph.learners.values():
        if owner.selector is not None or owner.like_weights:
            learners.add(owner.id)
            todo.extend(_reads(graph, owner))
    while todo:
        flow = graph.flows[todo.pop()]
        if flow.id in flows:
            continue
        flows.add(flow.id)
        todo.extend(flow.args)
        named = flow.attrs.get("learners") or (flow.attr("learner"),)
        for id in named if isinstance(named, tuple) else ():
            learner = graph.learners.get(str(id))
            if learner is not None and learner.id not in learners:
                learners.add(learner.id)
                todo.extend(_reads(graph, learner))
    learners |= {of for id in set(learners) for of in begun_as(graph, id)}
    learners |= {id for m in set(learners) for id in graph.learners[m].joins}
    return flows, learners


def _reads(graph: LevelGraph, learner: Learner) -> list[str]:
    found = [flow for _, flow in graph.needs_of(learner)]
    found += [w.pred for w in learner.writes if w.pred is not None]
    if learner.rule.gradient in graph.flows:
        found.append(str(learner.rule.gradient))
    if isinstance(learner.linear, LinearForm):
        found += flows_of_form(learner.linear)
    return found
