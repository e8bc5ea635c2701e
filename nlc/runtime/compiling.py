"""Level graph after its passes -> a compiled spec of the chosen backend."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nlc.diagnostics import BackendError, Diagnostic, SpecError, UsageError
from nlc.graph.alone import is_alone
from nlc.graph.codes import CannotLower
from nlc.graph.ir import Backprop, LevelGraph
from nlc.graph.loss_learners import has_no_loss
from nlc.graph.outer import loss_levels
from nlc.graph.segments import periods
from nlc.passmanager import Stage
from nlc.program.program import schedule
from nlc.runtime.compiled import Checked, CompiledSpec
from nlc.runtime.loader import load_source
from nlc.runtime.packages import require


def unrolled(graph: LevelGraph) -> LevelGraph:
    """The same values, without what concerns gradients only: what is exported has none."""
    kept = {id: replace(m.execution, recompute=0) if m.execution is not None else None for id, m in graph.learners.items()}
    learners = {id: replace(m, backprop=Backprop(), execution=kept[id]) for id, m in graph.learners.items()}
    return graph if learners == dict(graph.learners) else graph.with_(learners=learners)


def _refuse_levels(graph: LevelGraph) -> None:
    """An exported module has no gradients, so nothing in it learns from the loss. Raises BackendError."""
    problems: list[Diagnostic] = []
    for level in loss_levels(graph):
        text = f"`{level.owner.id}` cannot be exported: it learns by gradients of the loss, which an exported module does not have"
        problems.append(CannotLower(text, level.owner.span, "the backends `inductor` and `eager` run it; with a rate of 0 it is exported"))
    if problems:
        raise BackendError(problems, dict(graph.sources))


def compile_graph(graph: LevelGraph, stages: tuple[Stage, ...], backend: str, seed: int, export: bool = False) -> CompiledSpec:
    """`export`: the generated module is in its form for export; see `generate`.

    Raises UsageError for a rule by itself, which computes no loss; SpecError for a block whose learners minimise that of another spec.
    """
    if is_alone(graph):
        raise UsageError(f"`{graph.name}` is a rule: it updates weights and computes nothing of them; `nlc.optimizer` compiles it")
    if problems := list(has_no_loss(graph)):
        raise SpecError(problems, dict(graph.sources))
    if export or backend == "iree":
        _refuse_levels(graph)
        graph = unrolled(graph)
    known: dict[str, Any] = {"graph": graph, "stages": stages, "backend": backend, "program": None, "source": ""}
    if backend == "reference":
        from nlc.backends.reference import ReferenceModule

        made: CompiledSpec = type("ReferenceSpec", (Checked, ReferenceModule), known)(seed)
        return made
    from nlc.backends.torch_module import generate

    program = schedule(graph)
    if backend == "iree":
        require("torch_mlir", "iree.compiler", "iree.runtime")
    generated = generate(program, export or backend == "iree")
    module = load_source(generated.source, graph.name)
    if backend == "inductor":
        from nlc.backends.inductor import compile_regions, compile_updates

        growing = any(learner.solve is not None for learner in graph.learners.values())
        compile_regions(module, generated.regions, growing, bool(periods(graph)))
        compile_updates(module, *generated.updates)
    known |= {"program": program, "source": generated.source}
    bases: tuple[type, ...] = (getattr(module, generated.class_name),)
    if backend == "iree":
        from nlc.backends.iree import IreeModule

        bases = (IreeModule, *bases)
    result: CompiledSpec = type(f"Compiled{generated.class_name}", (Checked, *bases), known)(seed)
    return result
