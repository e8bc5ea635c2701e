"""What ends with a sequence reads where one starts: states, contexts, the rows before a convolution, the position of a token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from nlc.diagnostics import Diagnostic
from nlc.graph import codes
from nlc.graph.ir import Flow, Learner, LevelGraph, root_of

POSITION = "position"


def obey_sequences(graph: LevelGraph) -> LevelGraph:
    """The graph in which all that a spec's `sequence` ends, and all that belongs to a learner with a `reset`, knows about it.

    A learner with a reset of its own begins anew at both. Periods count from the start of a sequence.
    """
    flows, learners = dict(graph.flows), dict(graph.learners)
    for learner in graph.learners.values():
        if is_in_context(learner):
            learner = _masked(flows, learner) if graph.starts is not None else learner
            learners[learner.id] = replace(learner, reset=_either(flows, graph.starts, learner))
    counts = [flow.id for flow in flows.values() if flow.op == "boundary"]
    if graph.starts is not None and (counts or POSITION in flows):
        flows[POSITION] = position(graph.starts)
    for flow in list(flows.values()):
        added = _added(graph.starts, flow, learners)
        if added is not None and flow.id != POSITION:
            flows[flow.id] = replace(flow, args=(*flow.args[: own_operands(flow, learners)], added))
    changed = graph.with_(flows=flows, learners=learners)
    return graph if changed == graph else changed


def counted_resets(graph: LevelGraph) -> Iterator[Diagnostic]:
    """Rules that ask how many updates their learner has made, where it has a reset of its own: only sequences restart the count."""
    for flow in graph.flows.values():
        host = graph.learners[root_of(graph.learners, str(flow.attr("learner")))] if flow.op == "age" else None
        if host is not None and host.selector is None and host.reset not in (None, graph.starts):
            text = f"the rule of `{host.base}` asks for `age`, which a `reset` of the learner does not restart in this version"
            yield codes.NotCompiledYet(text, host.span, "leave `reset` out, or take a rule without `age`")
    for learner in graph.learners.values():
        host = graph.learners[root_of(graph.learners, learner.id)]
        if learner.host is not None and learner.folds and host.selector is None and host.reset not in (None, graph.starts):
            text = f"the rule of `{host.base}` has a slow learner, whose period a `reset` does not restart in this version"
            yield codes.NotCompiledYet(text, host.span, "leave `reset` out, or take a rule without slow learners")


def is_in_context(learner: Learner) -> bool:
    """Does it keep something for each row from token to token? The learners of its rule do as it does."""
    return learner.host is None and learner.sharing == "sequence" and bool(learner.writes or learner.solve)


def position(starts: str) -> Flow:
    """The place of a token in its sequence, counted from 0."""
    return Flow(POSITION, "position", (starts,))


def documents(graph: LevelGraph) -> dict[str, str]:
    """The inputs whose change starts a sequence, and the state that holds the last value of each."""
    flows = (graph.flows[id] for id in (graph.upstream(graph.starts) if graph.starts is not None else ()))
    return {flow.args[0]: str(flow.attr("tail")) for flow in flows if flow.op == "new" and flow.args[0] in graph.inputs}


def document(graph: LevelGraph) -> str | None:
    """The input whose change starts a sequence inside a row, `sequence: {starts: new(doc)}`; None where a row is one sequence."""
    flow = graph.flows[graph.starts] if graph.starts is not None else None
    return flow.args[0] if flow is not None and flow.op == "new" and flow.args[0] in graph.inputs else None


def own_operands(flow: Flow, learners: Mapping[str, Learner]) -> int:
    """The number of operands of a flow that carries something, without the one that says where its past ends."""
    if flow.op == "attend":
        solve = learners[flow.attr("learner")].solve
        return 1 + len(solve.flows) if solve is not None else 0
    return {"conv": 1, "delay": 1, "boundary": 0}[flow.op]


def _masked(flows: dict[str, Flow], learner: Learner) -> Learner:
    """Segments of an exact solve where sequences start inside a row: a reset as any other, since its clock restarts with a sequence."""
    solve = learner.solve
    if solve is None or not solve.every:
        return learner
    id = f"{learner.id}.reset"
    flows[id] = Flow(id, "boundary", attrs={"period": solve.every}, scope=learner.scope, span=learner.span)
    return replace(learner, reset=id, solve=replace(solve, every=0))


def _either(flows: dict[str, Flow], starts: str | None, learner: Learner) -> str | None:
    """Where a sequence starts or the learner is reset."""
    own = learner.reset
    if starts is None or own is None or own == starts or own.endswith(":sequence"):
        return starts if own is None else own
    id = f"{own}:sequence"
    flows[id] = Flow(id, "max", (starts, own), scope=learner.scope, span=flows[own].span)
    return id


def _added(starts: str | None, flow: Flow, learners: dict[str, Learner]) -> str | None:
    """The operand that tells a flow where its past ends."""
    if flow.op == "attend":
        return learners[flow.attr("learner")].reset
    if flow.op == "delay":
        owner = str(flow.attr("tail")).rpartition(".")[0]  # a function of several tensors has one window
        return next(m.reset for m in learners.values() if m.base == owner)
    if flow.op == "conv":
        return starts
    return POSITION if flow.op == "boundary" and starts is not None else None
