"""Graphs with a part switched off, to measure what the part is worth. They are built, never compiled by accident."""

from __future__ import annotations

from dataclasses import replace

from nlc.graph.ir import Flow, Learner, LevelGraph
from nlc.graph.order import effective_clock
from nlc.graph.rewrite import substitute


def without_reads(graph: LevelGraph, *learners: str) -> LevelGraph:
    """The graph in which every flow that reads a token memory (or one of `learners`) sees zeros.

    The memories still learn, so parameters and states keep their names and a trained state dict loads. Meant for graphs
    before any pass. What a memory reads of itself to make its own update stays.
    """
    functions = {name: without_reads(function, *learners) for name, function in graph.functions.items()}
    flows: dict[str, Flow] = {}
    zeros: dict[str, str] = {}
    for id, flow in graph.flows.items():
        flows[id] = flow
        if flow.op in ("recall", "tensor") and flow.host is None and flow.attr("state") != "at":
            learner = graph.learners[flow.attr("learner")]
            if learner.id in learners if learners else _is_token_memory(graph, learner):
                zero = flows.setdefault("#0", graph.flows.get("#0", Flow("#0", "number", attrs={"value": 0}, span=flow.span)))
                silent = replace(flow, id=f"{id}:unread", op="mul", args=(id, zero.id), attrs={})
                flows[silent.id] = silent
                zeros[id] = silent.id
    silenced = substitute(graph.with_(flows=flows, functions=functions), zeros)
    restored = {new: flows[new] for new in zeros.values()}
    return silenced.with_(flows={**silenced.flows, **restored})


def _is_token_memory(graph: LevelGraph, learner: Learner) -> bool:
    clock = effective_clock(graph, learner)
    return bool(learner.writes) and learner.host is None and learner.selector is None and clock is not None and clock.unit == "token"
