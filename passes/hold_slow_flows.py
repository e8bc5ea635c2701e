"""Compute what only slow learners of a rule feed when they change, and hold it between."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from nlc.graph.ir import Clock, Flow, Init, Learner, LevelGraph, Rule, Store, StoreTensor, Write
from nlc.graph.order import ordered
from nlc.graph.outer import Outer, owners
from nlc.graph.rewrite import substitute
from nlc.passmanager import Numerics, Pass

COSTLY = ("contract", "newton_schulz", "inverse_root", "eigenbasis")
"""Operators that are worth a state: those that multiply or decompose matrices."""
ZERO_AT_ZERO = ("neg", "T", "sum", "mean", "newton_schulz", "sqrt", "abs", "sign", "tanh", "relu", "silu", "gelu")
"""Operators that make zeros of zeros."""


@dataclass(frozen=True)
class HoldSlowFlows(Pass):
    """Compute what only slow learners of a rule of weights feed when they change, and hold it between.

    Before: a flow with a product, Newton-Schulz iteration, root or eigenbasis of matrices, made of slow learners of one period and of
    constants, which faster ones read: it is computed at every update.
    After: a learner of that period holds it, and they read the learner; other updates do not compute it. Only flows that are zero
    before the first period ends, as the state that holds them is.
    """

    name: ClassVar[str] = "hold-slow-flows"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, graph: LevelGraph) -> LevelGraph:
        for outer in owners(graph):
            for flow in list(_held(outer)):
                graph = _hold(graph, outer, flow)
        return graph


def _held(outer: Outer) -> Iterator[Flow]:
    """The last flows of each slow part of a rule, where they are costly."""
    periods = {id: _period(outer, id) for id in outer.differing}
    graph = outer.graph
    for period in sorted(set(periods.values()) - {0, 1}):
        faster = [m for m in (outer.owner, *outer.inner) if m is outer.owner or m.adds_up or outer.period(m) % period]
        asked = {need for m in faster for _, need in graph.needs_of(m)}
        often = graph.upstream(*asked)
        for id in (id for id in graph.flows if id in often and periods.get(id) == period and graph.flows[id].op != "recall"):
            ends = id in asked or any(each in often and periods.get(each) != period for each in graph.readers.get(id, ()))
            if ends and any(graph.flows[each].op in COSTLY for each in graph.upstream(id)) and _is_zero_at_first(graph, id):
                yield graph.flows[id]


def _period(outer: Outer, id: str) -> int:
    """The number of updates that divides all at which a flow may change, by the slow learners it is made of; 0 for a constant."""
    flow = outer.graph.flows[id]
    if flow.op in ("number", "word", "size"):
        return 0
    if flow.op == "recall" and not flow.args:
        slow = outer.graph.learners[str(flow.attr("learner"))]
        return outer.period(slow) if slow.host == outer.owner.id and slow.writes and flow.attr("state") == "after" else 1
    if not flow.args or flow.op in ("total", "folded"):
        return 1
    return math.gcd(*(_period(outer, arg) for arg in flow.args))


def _is_zero_at_first(graph: LevelGraph, id: str) -> bool:
    """Is a flow zero where all slow learners are in their first state?"""
    flow = graph.flows[id]
    zero: list[bool] = [_is_zero_at_first(graph, arg) for arg in flow.args]
    match flow.op:
        case "number":
            return bool(flow.attr("value") == 0)
        case "recall":
            return graph.learners[str(flow.attr("learner"))].init == Init("zeros")
        case "mul" | "contract":
            return any(zero)
        case "add" | "sub":
            return all(zero)
        case "div":
            return zero[0] and not zero[1]
    return flow.op in ZERO_AT_ZERO and all(zero)


def _hold(graph: LevelGraph, outer: Outer, flow: Flow) -> LevelGraph:
    """The graph in which a learner holds the flow."""
    id, owner = f"{flow.id.replace(':', '.')}.held", outer.owner
    clock = Clock("update", _period(outer, flow.id))
    zero = Flow("#0", "number", attrs={"value": 0})
    store = Store((StoreTensor("like", flow.axes),), "any")
    learner = Learner(id, store, (), clock, sharing=owner.sharing, writes=(Write(None, flow.id, flow.id, None, flow.span),))
    learner = replace(learner, fold={"update": "last"}, keep=zero.id, rule=Rule(step=flow.id), host=owner.id, span=flow.span)
    recall = Flow(
        f"{flow.id}:held", "recall", (), {"learner": id, "state": "after"}, flow.axes, flow.dtype, flow.scope, flow.host, flow.span
    )
    flows = {**({zero.id: zero} if zero.id not in graph.flows else {}), **graph.flows, recall.id: recall}
    faster = substitute(graph.with_(flows=flows), {flow.id: recall.id})
    return ordered(faster.with_learner(learner), [])
