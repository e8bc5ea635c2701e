"""What makes a spec a language model of bytes, found in its graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nlc.diagnostics import Diagnostic, Span, SpecError
from nlc.graph.ir import LevelGraph
from nlc.runtime import codes

BYTES = 256


@dataclass(frozen=True)
class ByteModel:
    """The names of the input that takes bytes and of the output that scores the next one."""

    tokens: str
    scores: str
    vocabulary: int

    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch of a corpus under the names of the spec."""
        return {self.tokens: batch["tokens"], "targets": batch["targets"]}

    def prompt(self, data: bytes) -> dict[str, Tensor]:
        """Bytes as one row."""
        return {self.tokens: torch.tensor([list(data)])}


def byte_model(graph: LevelGraph) -> ByteModel:
    """Raises SpecError (NLC713) that says what is missing."""
    problem = _refused(graph)
    if problem is not None:
        raise SpecError([problem], dict(graph.sources))
    loss = graph.flows[str(graph.loss)]
    scores = next(name for name, id in graph.outputs if id == loss.args[0])
    return ByteModel(graph.inputs[0], scores, int(graph.flows[graph.inputs[0]].attr("size")))


def _refused(graph: LevelGraph) -> Diagnostic | None:
    def no(what: str, span: Span = graph.span) -> Diagnostic:
        return codes.NotAByteModel(f"`{graph.name}` is no language model of bytes: {what}", span, "`nlc list` names some, under models")

    tokens = [graph.flows[name] for name in graph.inputs]
    labels = [flow for flow in tokens if flow.id not in graph.upstream(*(id for _, id in graph.outputs))]
    if labels and graph.loss is not None:
        return no(f"the objective, its loss, needs `{labels[0].id}`, which a text does not have", graph.flows[graph.loss].span)
    if len(tokens) != 1 or tokens[0].dtype != "index":
        return no("it needs one input, an index", tokens[0].span if tokens else graph.span)
    if graph.loss is None:
        return no("it has no loss")
    loss = graph.flows[graph.loss]
    target = graph.flows[loss.args[1]] if loss.op == "cross_entropy" else None
    if target is None or target.op != "next" or target.args != (tokens[0].id,):
        return no(f"its loss is not `cross_entropy(scores, next({tokens[0].id}))`", loss.span)
    if all(id != loss.args[0] for _, id in graph.outputs):
        return no("the scores in its loss are no output", loss.span)
    if not any(learner.selector is not None for learner in graph.learners.values()):
        return no("no learner owns its weights")
    return None
