"""The rules every level graph obeys, whatever pass made it. A broken rule is a bug of nlc, never of the user."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from nlc.diagnostics import InternalError
from nlc.graph.ir import LevelGraph
from nlc.graph.ops import OPS, is_any


def verify(graph: LevelGraph) -> None:
    """Raise InternalError naming the rule and the node if the graph is malformed."""
    for rule in RULES:
        for problem in rule(graph):
            raise InternalError(f"the graph `{graph.name}` breaks the rule {rule.__name__}: {problem}")
    for function in graph.functions.values():
        verify(function)


def flows_are_known_operators(graph: LevelGraph) -> Iterator[str]:
    for id, flow in graph.flows.items():
        if flow.id != id:
            yield f"flow {flow.id} is stored as {id}"
        if flow.op not in OPS:
            yield f"{id} has the unknown operator {flow.op}"
        elif OPS[flow.op].arity not in (None, len(flow.args)):
            yield f"{id} has {len(flow.args)} arguments"


def arguments_come_first(graph: LevelGraph) -> Iterator[str]:
    seen: set[str] = set()
    for id, flow in graph.flows.items():
        for arg in flow.args:
            if arg not in seen:
                yield f"{id} reads {arg}, which {'comes later' if arg in graph.flows else 'does not exist'}"
        seen.add(id)


def elementwise_axes_fit(graph: LevelGraph) -> Iterator[str]:
    for id, flow in graph.flows.items():
        axes = [graph.flows[arg].axes for arg in flow.args]
        # what an author writes must fit into its widest operand; what a derivation makes may join their axes
        if OPS[flow.op].elementwise and not any(map(is_any, axes)) and set().union(*axes) != set(flow.axes):
            yield f"{id} has axes {flow.axes}, its arguments {axes}"


def learners_exist(graph: LevelGraph) -> Iterator[str]:
    for id, flow in graph.flows.items():
        for name in ("learner", "learners"):
            named = flow.attr(name) or ()
            for learner in (named,) if isinstance(named, str) else named:
                if learner not in graph.learners:
                    yield f"{id} names the learner {learner}, which does not exist"


def learners_read_flows(graph: LevelGraph) -> Iterator[str]:
    for learner in graph.learners.values():
        for kind, flow in graph.needs_of(learner):
            if flow not in graph.flows:
                yield f"the {kind} of {learner.id} is {flow}, which does not exist"
        if learner.host is not None and learner.host not in graph.learners:
            yield f"the host of {learner.id} is {learner.host}, which does not exist"


def joined_learners_know_each_other(graph: LevelGraph) -> Iterator[str]:
    for learner in graph.learners.values():
        for id in learner.joins:
            if id not in graph.learners or graph.learners[id].joined != learner.id:
                yield f"{learner.id} holds {id}, which does not exist or does not say so"
        if learner.joined is not None and learner.id not in graph.learners[learner.joined].joins:
            yield f"{learner.id} is held by {learner.joined}, which does not say so"


def roots_exist(graph: LevelGraph) -> Iterator[str]:
    for root in graph.roots():
        if root not in graph.flows:
            yield f"{root} leaves the graph but does not exist"


def buckets_hold_learners(graph: LevelGraph) -> Iterator[str]:
    for bucket in graph.buckets:
        for learner in bucket.learners:
            if learner not in graph.learners:
                yield f"bucket {bucket.id} holds {learner}, which does not exist"


RULES: tuple[Callable[[LevelGraph], Iterator[str]], ...] = (
    flows_are_known_operators,
    arguments_come_first,
    elementwise_axes_fit,
    learners_exist,
    learners_read_flows,
    joined_learners_know_each_other,
    roots_exist,
    buckets_hold_learners,
)
