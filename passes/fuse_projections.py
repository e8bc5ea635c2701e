"""Make one product of all projections of the same flow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from nlc.graph.ir import Axis, Flow, LevelGraph, size_of
from nlc.passmanager import Numerics, Pass


@dataclass(frozen=True)
class FuseProjections(Pass):
    """Make one product of all projections of the same flow.

    Before: several `recall` flows of slow matrices with one query (`linear(u, ..)` for keys, values, gates).
    After: one `project` flow over the joined matrices, and a `part` flow for each; parameters keep their names. Matrices of more than
    `most` numbers stay as they are: their products take as long together as one by one, and joining them copies them. So do those
    whose parts an attention would read as they are, strided.
    """

    name: ClassVar[str] = "fuse-projections"
    numerics: ClassVar[Numerics] = Numerics.TOLERANCE
    bound: ClassVar[float] = 1e-12

    least: int = 2
    most: int = 1 << 17

    def run(self, graph: LevelGraph) -> LevelGraph:
        groups: dict[object, list[Flow]] = {}
        attended = {id for flow in graph.flows.values() if flow.op == "attend" for id in flow.args}
        for flow in graph.flows.values():
            if flow.op == "recall" and flow.args and flow.id not in attended:
                learner = graph.learners[flow.attr("learner")]
                small = size_of(learner.axes) <= self.most
                if learner.is_parameter and small and not learner.per and graph.flows[flow.args[0]].axes == learner.store.in_axes:
                    groups.setdefault((flow.args[0], flow.scope), []).append(flow)
        flows = dict(graph.flows)
        for members in groups.values():
            if len(members) >= self.least:
                flows = _fuse(flows, members)
        return graph.with_(flows=flows) if len(flows) > len(graph.flows) else graph


def _fuse(flows: dict[str, Flow], members: list[Flow]) -> dict[str, Flow]:
    first = members[0]
    stem = first.args[0].removeprefix(f"{first.scope}.")
    id = f"{first.scope}.{stem}:project" if first.scope else f"{stem}:project"
    sizes = [size_of(flow.axes) for flow in members]
    learners = tuple(flow.attr("learner") for flow in members)
    joined = Flow(id, "project", first.args, {"learners": learners}, (Axis("joined", sum(sizes)),), scope=first.scope, span=first.span)
    parts: dict[str, Flow] = {}
    start = 0
    for flow, size in zip(members, sizes, strict=True):
        parts[flow.id] = replace(flow, op="part", args=(id,), attrs={"start": start, "size": size, "learner": flow.attr("learner")})
        start += size
    out: dict[str, Flow] = {}
    for flow in flows.values():
        if flow is first:
            out[id] = joined
        out[flow.id] = parts.get(flow.id, flow)
    return out
