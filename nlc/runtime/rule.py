"""A rule of the language, compiled for tensors of any owner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from nlc.backends.layers import drawn
from nlc.backends.torch_module.outer import OuterUpdate
from nlc.backends.torch_module.rule import generate_rule
from nlc.graph.build import build
from nlc.graph.builder import Value
from nlc.graph.ir import ANY, Axes, LevelGraph
from nlc.graph.outer import Outer, aged
from nlc.graph.state import ZEROS
from nlc.language.library import Library
from nlc.language.spec import Spec
from nlc.passmanager import PassManager
from nlc.runtime.loader import load_source


@dataclass(frozen=True)
class Batch:
    """Tensors of one dtype, device and age that are updated together: a tensor of each column in a row. states, shared: by name.

    `age` is the number of this update, from 1; `params` are the numbers that the rule is told.
    """

    weights: list[Tensor]
    gradients: list[Tensor]
    states: Mapping[str, list[Tensor]]
    age: int
    params: list[Tensor]
    shared: Mapping[str, Tensor]

    @property
    def counted(self) -> Tensor:
        return torch.tensor(self.age, dtype=torch.float64)


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
    def outer(self) -> Outer:
        """The owner of the weights and the learners of its rule."""
        return self.update.outer

    @property
    def states(self) -> tuple[str, ...]:
        """The states that there is one of for each tensor, by name: learners, and what slow ones have added up."""
        return tuple(map(self._name, self.outer.keys))

    @property
    def shared(self) -> dict[str, float]:
        """The first values of the learners that there is one of for all tensors, each one number."""
        return {self._name(m.id): m.init.number for m in self.outer.shared}

    @property
    def aged(self) -> frozenset[str]:
        """The learners whose age the rule asks for."""
        return frozenset(map(self._name, aged(self.graph)))

    @property
    def axes(self) -> Axes:
        """The axes of its tensors: rows and columns, or any."""
        return self.outer.owner.axes

    @property
    def matrices(self) -> bool:
        """Is it for matrices only?"""
        return ANY not in self.axes

    def _name(self, id: str) -> str:
        return id.removeprefix(f"{self.outer.owner.id}.")

    def begin(self, state: str, w: Tensor) -> Tensor:
        """The first value of a state of a tensor: of its shape, or of the sizes of its axes."""
        key = f"{self.outer.owner.id}.{state}"
        learner = self.graph.learners[self.outer.learner_of(key)]
        shape = self.outer.shape(learner, w.shape)
        init = learner.init if key in self.graph.learners else ZEROS
        generator = torch.Generator().manual_seed(self.outer.seed(learner))
        return drawn(shape, init.distribution, init.args, generator, w.dtype).to(w.device)

    def sums(self, batch: Batch) -> list[Tensor]:
        """The part of these tensors in what the rule sums over all tensors."""
        variant = self.update.variant(batch.age)
        if not variant.sums:
            return []
        total = getattr(self.module, f"{self.update.name}_total{variant.suffix}")
        summed: list[Tensor] = self.module.summed(total, self._columns(batch), (batch.counted, *batch.params), variant.summed_elementwise)
        return summed

    def apply(self, batch: Batch, sums: list[Tensor]) -> dict[str, Tensor]:
        """One update, in place; sums: over all tensors. Returns the new values of the learners that there is one of for all tensors."""
        name, variant = self.update.name, self.update.variant(batch.age)
        numbers: tuple[Tensor, ...] = ()
        if variant.numbers or self.outer.shared:
            known = [batch.shared[self._name(m.id)] for m in self.outer.shared]
            numbers = getattr(self.module, f"{name}_numbers{variant.suffix}")(batch.counted, *batch.params, *known, *sums)
        update = getattr(self.module, f"{name}_update{variant.suffix}")
        self.module.each_tensor(update, self._columns(batch), numbers[: variant.numbers], variant.elementwise)
        return {self._name(m.id): x for m, x in zip(self.outer.shared, numbers[variant.numbers :], strict=True)}

    def _columns(self, batch: Batch) -> list[list[Tensor]]:
        keys = self.update.variant(batch.age).states
        return [batch.weights, batch.gradients, *(batch.states[self._name(key)] for key in keys)]


def compile_rule(spec: Spec, constants: Mapping[str, Value], backend: str, library: Library | None = None) -> CompiledRule:
    """Raises SpecError for mistakes in the rule. constants: values of params that must be known when compiling."""
    graph, _ = PassManager().run(build(spec, library, params=constants))
    generated = generate_rule(graph)
    module = load_source(generated.source, graph.name)
    if backend == "inductor":
        from nlc.backends.inductor import compile_updates

        compile_updates(module, *generated.update.functions)
    return CompiledRule(graph, generated.source, generated.update, module)
