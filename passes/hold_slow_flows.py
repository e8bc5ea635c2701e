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
            periods = _periods(outer)
            for flow in _held(outer, periods):
                graph = _hold(graph, outer.owner, flow, periods[flow.id])
        return graph


def _held(outer: Outer, periods: dict[str, int]) -> Iterator[Flow]:
    """The last flows of each slow part of a rule, where they are costly."""
    graph, zeros = outer.graph, _zeros(outer.graph)
    for period in sorted({periods[id] for id in outer.differing} - {0, 1}):
        faster = [m for m in (outer.owner, *outer.inner) if m is outer.owner or m.adds_up or outer.period(m) % period]
        asked = {need for m in faster for _, need in graph.needs_of(m)}
        often = graph.upstream(*asked)
        for flow in graph.flows.values():
            if flow.id not in often or flow.id not in outer.differing or periods[flow.id] != period or flow.op == "recall":
                continue
            ends = flow.id in asked or any(each in often and periods[each] != period for each in graph.readers.get(flow.id, ()))
            if ends and flow.id in zeros and any(graph.flows[each].op in COSTLY for each in graph.upstream(flow.id)):
                yield flow


def _periods(outer: Outer) -> dict[str, int]:
    """For each flow the number of updates that divides all at which it may change, by the slow learners it is made of; 0: a constant."""
    found: dict[str, int] = {}
    for flow in outer.graph.flows.values():
        if flow.op in ("number", "word", "size"):
            found[flow.id] = 0
        elif flow.op == "recall" and not flow.args:
            slow = outer.graph.learners[str(flow.attr("learner"))]
            its_own = slow.host == outer.owner.id and slow.writes and flow.attr("state") == "after"
            found[flow.id] = outer.period(slow) if its_own else 1
        elif not flow.args or flow.op in ("total", "folded"):
            found[flow.id] = 1
        else:
            found[flow.id] = math.gcd(*(found[arg] for arg in flow.args))
    return found


def _zeros(graph: LevelGraph) -> set[str]:
    """The flows that are zero where all learners are in their first state."""
    found: set[str] = set()
    for flow in graph.flows.values():
        zero = [arg in found for arg in flow.args]
        match flow.op:
            case "number":
                is_zero = bool(flow.attr("value") == 0)
            case "recall":
                is_zero = graph.learners[str(flow.attr("learner"))].init == Init("zeros")
            case "mul" | "contract":
                is_zero = any(zero)
            case "add" | "sub":
                is_zero = all(zero)
            case "div":
                is_zero = zero[0] and not zero[1]
            case _:
                is_zero = flow.op in ZERO_AT_ZERO and all(zero)
        found |= {flow.id} if is_zero else set()
    return found


def _hold(graph: LevelGraph, owner: Learner, flow: Flow, period: int) -> LevelGraph:
    """The graph in which a learner holds the flow."""
    id, clock = f"{flow.id.replace(':', '.')}.held", Clock("update", period)
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
