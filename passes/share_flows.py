"""Compute equal flows once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from nlc.graph.ir import Flow, LevelGraph
from nlc.graph.rewrite import substitute
from nlc.passmanager import Numerics, Pass


@dataclass(frozen=True)
class ShareFlows(Pass):
    """Compute equal flows once.

    Before: two flows with the same operator, operands and attributes in one block.
    After: all readers read the first; the other stays, unread, for `drop-dead`. Calls with weights of their own differ.
    """

    name: ClassVar[str] = "share-flows"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, graph: LevelGraph) -> LevelGraph:
        first: dict[object, str] = {}
        new: dict[str, str] = {}
        for flow in graph.flows.values():
            args = tuple(new.get(arg, arg) for arg in flow.args)
            key = _key(replace(flow, args=args))
            if flow.op in ("number", "input"):
                continue
            if key in first and graph.readers.get(flow.id, ()) + tuple(_named_in(graph, flow.id)):
                new[flow.id] = first[key]
            else:
                first.setdefault(key, flow.id)
        return substitute(graph, new)


def _key(flow: Flow) -> object:
    attrs = tuple(sorted((name, repr(value)) for name, value in flow.attrs.items()))
    return flow.op, flow.args, attrs, flow.axes, flow.dtype, flow.scope, flow.host


def _named_in(graph: LevelGraph, id: str) -> list[str]:
    """Where a flow is read other than by a flow: "root", or the kind of an edge into a learner."""
    kinds = ["root" for root in graph.roots() if root == id]
    return kinds + [kind for learner in graph.learners.values() for kind, flow in graph.needs_of(learner) if flow == id]
