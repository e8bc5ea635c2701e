"""The level graph as a networkx graph with typed edges, for everything that shows it.

Nodes are ("flow", id), ("learner", id), ("parameter", name) for a learned initial state, and ("output", name), ("loss", "loss").
The kind of an edge is its attribute `kind`:

argument, query      into a flow: an operand; what a learner is asked
recall, tensor       from a learner into a flow: what it answers; its tensor as an operand (embedding, convolution, norm)
pred, gradient, age  from a learner into a flow of an update: recalled value, slope of the objective, number of updates
key, value, objective, keep, rate, step, gradient
                     into a learner: what its write reads; `gradient` is the leaf from which the rule starts
rule                 into a learner: a flow bound to a param of its rule, before the rule is expanded
reset                into a learner: where it begins anew; from a learner to weights that begin anew as what it holds
form                 into a learner: a flow that its derived recurrence reads (`role`: key, probe, target, F 0 0, ..)
initial state        from a parameter, or a flow, into the memory that starts with it
owns, host           from an outer learner to a tensor it updates; from the learner of a rule to its host
output, loss         from a flow to what leaves the graph
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import networkx as nx

from nlc.graph.ir import Flow, Learner, LevelGraph
from nlc.graph.linear import LinearForm, numbered

Node = tuple[str, str]

ASKED = ("recall", "project", "attend")
"""Operators whose operand is a query of a learner."""
FROM_LEARNER = {
    "recall": "recall",
    "attend": "recall",
    "project": "recall",
    "part": "recall",
    "pred": "pred",
    "gradient": "gradient",
    "folded": "gradient",
    "age": "age",
    "due": "age",
    "weights": "recall",
}
TAKEN = {True: "pred", None: "recall"}
"""The kind of edge of a tensor that is an operand of a function, by whether it is the one that gradients are taken of."""
"""The kind of edge from the learner an operator names; `tensor` for the others."""


@dataclass(frozen=True)
class Edge:
    source: Node
    target: Node
    kind: str
    details: dict[str, str | int] = field(default_factory=dict)


def to_networkx(graph: LevelGraph) -> nx.MultiDiGraph[Node]:
    """All nodes and typed edges; a node's attribute `node` is the Flow or Learner itself. Functions stay inside their flow."""
    made: nx.MultiDiGraph[Node] = nx.MultiDiGraph(name=graph.name)
    for flow in graph.flows.values():
        made.add_node(("flow", flow.id), kind="flow", node=flow)
    for learner in graph.learners.values():
        made.add_node(("learner", learner.id), kind="learner", node=learner)
    for edge in edges(graph):
        for end in (edge.source, edge.target):
            if end not in made:
                made.add_node(end, kind=end[0])
        made.add_edge(edge.source, edge.target, kind=edge.kind, **edge.details)
    return made


def edges(graph: LevelGraph) -> Iterator[Edge]:
    """Every edge, in the order of the graph: into flows, into learners, out of the graph."""
    for flow in graph.flows.values():
        yield from _into_flow(graph, flow)
    for learner in graph.learners.values():
        yield from _into_learner(graph, learner)
        yield from _between_learners(graph, learner)
    for name, id in graph.outputs:
        yield Edge(("flow", id), ("output", name), "output")
    if graph.loss is not None:
        yield Edge(("flow", graph.loss), ("loss", "loss"), "loss")


def _into_flow(graph: LevelGraph, flow: Flow) -> Iterator[Edge]:
    here = ("flow", flow.id)
    operands = flow.args[:1] if flow.op == "attend" else flow.args  # a context reaches its query through the learner
    for index, arg in enumerate(operands):
        asks = flow.op in ASKED and not (index and flow.attr("inverse"))  # the second operand of an inverse is its ridge
        yield Edge(("flow", arg), here, "query" if asks else "argument", {"index": index})
    for id in learners_of(flow):
        if id in graph.learners:
            state = flow.attr("state")
            kind = TAKEN[flow.attr("pred")] if flow.op == "tensor" and graph.learners[id].writes else FROM_LEARNER.get(flow.op, "tensor")
            yield Edge(("learner", id), here, kind, {"state": state} if state else {})


def learners_of(flow: Flow) -> tuple[str, ...]:
    """The learners that a flow names."""
    many = flow.attr("learners")
    if isinstance(many, tuple):
        return tuple(map(str, many))
    return () if flow.attr("learner") is None else (str(flow.attr("learner")),)


def _into_learner(graph: LevelGraph, learner: Learner) -> Iterator[Edge]:
    here = ("learner", learner.id)
    bound = {name for name, _ in learner.rule.args}
    for kind, id in graph.needs_of(learner):
        if kind in bound:
            yield Edge(("flow", id), here, "rule", {"param": kind})
        else:
            yield Edge(("flow", id), here, kind)
    rate = rate_of(graph, learner)
    if rate is not None:
        yield Edge(("flow", rate), here, "rate")
    if learner.rule.gradient in graph.flows:
        yield Edge(("flow", str(learner.rule.gradient)), here, "gradient")
    if isinstance(learner.linear, LinearForm):
        for role, id in form_flows(learner.linear):
            yield Edge(("flow", id), here, "form", {"role": role})


def _between_learners(graph: LevelGraph, learner: Learner) -> Iterator[Edge]:
    here = ("learner", learner.id)
    if learner.init.learned and not learner.is_parameter:
        yield Edge(("parameter", graph.parameter_name(learner)), here, "initial state")
    for id in learner.owns:
        owned = graph.learners[id]
        yield Edge(here, ("learner", id) if owned.is_parameter else ("parameter", graph.parameter_name(owned)), "owns")
    if learner.host is not None:
        yield Edge(here, ("learner", learner.host), "host")
    if learner.restart is not None:
        yield Edge(("learner", learner.restart.state), here, "reset", {"every": learner.restart.every})


def rate_of(graph: LevelGraph, learner: Learner) -> str | None:
    """The flow of `rate: r`, read off the step -(r * gradient); None where the step is another one."""
    step = graph.flows.get(learner.rule.step or "")
    scaled = graph.flows[step.args[0]] if step is not None and step.op == "neg" else None
    if scaled is None or scaled.op != "mul" or learner.rule.call is not None:
        return None
    rate, gradient = scaled.args
    return rate if gradient == learner.rule.gradient else None


def form_flows(form: LinearForm) -> Iterator[tuple[str, str]]:
    """(role, flow) for everything a linear form reads; numbers are part of the form itself."""
    gates = [(f"F {i} {j}", x) for i, row in enumerate(form.F) for j, x in enumerate(row)]
    named: list[tuple[str, str | None]] = [("log keep", form.log_keep)]
    for write, number in numbered(form):
        named += [(f"key{number}", write.key), (f"probe{number}", write.probe), (f"target{number}", write.target)]
        gates += [(f"b{number} {i}", x) for i, x in enumerate(write.b)]
        gates += [(f"c{number} {i}", x) for i, x in enumerate(write.c or ())]
    for role, x in [*named, *gates]:
        if isinstance(x, str):
            yield role, x
