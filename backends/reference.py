"""The reference interpreter as a module with the interface of a compiled spec."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from nlc.backends.layers import register
from nlc.graph.ir import LevelGraph
from nlc.reference.interpreter import Reference, draw

Tensors = dict[str, Tensor]


class ReferenceModule(nn.Module):
    """Runs the level graph token by token, in the dtype of its parameters and inputs."""

    graph: LevelGraph

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for learner in self.graph.parameters:
            shape = tuple(axis.size for axis in learner.axes)
            register(self, self.graph.parameter_name(learner), draw(learner.init, shape, generator, torch.float32))

    def _machine(self, inputs: Tensors | None) -> Reference:
        p = dict(self.named_parameters())
        known = [x for x in [*p.values(), *(inputs or {}).values()] if x.is_floating_point()]
        dtype = torch.float64 if any(x.dtype == torch.float64 for x in known) else torch.float32
        return Reference(self.graph, p, dtype)

    def initial_state(self, batch: int, like: Tensors | None = None) -> Tensors:
        return self._machine(like).initial_state(batch)

    def forward(self, inputs: Tensors, state: Tensors | None = None, frozen: Collection[str] = ()) -> tuple[Tensors, Tensors]:
        outputs, new = self._machine(inputs).run(inputs, state, frozen)
        return {name: outputs[name] for name, _ in self.graph.outputs}, new

    def end(self, state: Tensors, frozen: Collection[str] = ()) -> Tensors:
        return self._machine({key: x for key, x in state.items() if x.is_floating_point()}).end(state, frozen)

    def step(self, inputs: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        outputs, new = self.forward({name: x.unsqueeze(1) for name, x in inputs.items()}, state)
        return {name: x.squeeze(1) for name, x in outputs.items()}, new

    def loss(self, inputs: Tensors, state: Tensors | None = None, carry: bool = True) -> tuple[Tensor, Tensors, Tensors]:
        machine = self._machine(inputs)
        outputs, new = machine.run(inputs, state)
        return machine.fold(outputs), {name: outputs[name] for name, _ in self.graph.outputs}, new if carry else {}

    def train_step(self, inputs: Tensors, optimizer: Tensors | None = None) -> tuple[Tensor, Tensors]:
        loss, parameters, new = self._machine(inputs).train_step(inputs, optimizer or {})
        with torch.no_grad():
            for name, x in self.named_parameters():
                x.copy_(parameters[name])
        return loss, new
