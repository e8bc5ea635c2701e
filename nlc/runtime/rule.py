"""A rule of the language, compiled for tensors of any owner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from nlc.backends.torch_module.outer import OuterUpdate
from nlc.backends.torch_module.rule import generate_rule
from nlc.graph.build import build
from nlc.graph.ir import ANY, Axes, Learner, LevelGraph
from nlc.language.library import Library
from nlc.language.spec import Spec
from nlc.passmanager import PassManager
from nlc.runtime.loader import load_source


@dataclass(frozen=True)
class CompiledRule:
    """The level graph of a rule, its code, and the module that the code makes."""

    graph: LevelGraph
    source: str
    update: OuterUpdate
    module: ModuleType

    @property
    def params(self) -> tuple[str, ...]:
        """The names of the numbers that each update is told."""
        return self.update.params

    @property
    def states(self) -> dict[str, Learner]:
        """The learners that there is one of for each tensor, by name."""
        return {self._name(id): self.graph.learners[id] for id in self.update.states}

    @property
    def shared(self) -> dict[str, Learner]:
        """The learners that there is one of for all tensors, each one number."""
        return {self._name(id): self.graph.learners[id] for id in self.update.shared}

    @property
    def axes(self) -> Axes:
        """The axes of its tensors: rows and columns, or any."""
        return self.graph.learners[self.update.owner].axes

    @property
    def matrices(self) -> bool:
        """Is it for matrices only?"""
        return ANY not in self.axes

    def _name(self, id: str) -> str:
        return id.removeprefix(f"{self.update.owner}.")

    def begin(self, learner: Learner, w: Tensor) -> Tensor:
        """The first state of a learner for a tensor: of its shape, or of the sizes of its axes."""
        sizes = {} if ANY in self.axes else {axis.name: size for axis, size in zip(self.axes, w.shape, strict=True)}
        shape = w.shape if ANY in learner.axes else tuple(sizes.get(axis.name, axis.size) for axis in learner.axes)
        if learner.init.distribution == "eye":
            return torch.eye(*shape, dtype=w.dtype, device=w.device)
        return torch.full(shape, learner.init.number, dtype=w.dtype, device=w.device)

    def apply(self, columns: list[list[Tensor]], age: int, params: list[Tensor], shared: list[Tensor]) -> None:
        """One update, in place. columns: weights, gradients, then the states, a tensor of each in a row; `age` counts this update."""
        module, update = self.module, self.update
        counted = torch.tensor(age, dtype=torch.float64)
        sums = (
            module.summed(getattr(module, f"{update.name}_total"), columns, (counted, *params), update.summed_elementwise)
            if update.sums
            else []
        )
        numbers: list[Tensor] = []
        if update.numbers or update.shared:
            made = getattr(module, f"{update.name}_numbers")(counted, *params, *shared, *sums)
            for old, new in zip(shared, made[update.numbers :], strict=True):
                old.copy_(new)
            numbers = [x.to(columns[0][0].device) for x in made[: update.numbers]]
        module.each_tensor(getattr(module, f"{update.name}_update"), columns, numbers, update.elementwise)


def compile_rule(spec: Spec, constants: Mapping[str, float], backend: str, library: Library | None = None) -> CompiledRule:
    """Raises SpecError for mistakes in the rule. constants: values of params that must be known when compiling."""
    graph, _ = PassManager().run(build(spec, library, params=constants))
    generated = generate_rule(graph)
    module = load_source(generated.source, graph.name)
    if backend == "inductor":
        from nlc.backends.inductor import compile_updates

        compile_updates(module, *generated.update.functions)
    return CompiledRule(graph, generated.source, generated.update, module)
