"""The update of weights by their rule, tensor by tensor: the meaning of outer levels, and of rules by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nlc.graph.ir import ANY, Axes, Flow, Learner, LevelGraph
from nlc.graph.ops import OPS
from nlc.graph.outer import Matrix, Outer, owners
from nlc.graph.state import ZEROS
from nlc.reference.interpreter import Reference, Tensors, Tick, draw
from nlc.reference.operators import elementwise


class OuterUpdate(Tick):
    """One update of an outer level: the same flows, with a dict of tensors where a flow differs from weight to weight.

    A rule for matrices sees the weights, and states of their shape, as matrices; `state` and its keys are those of `outer_states`.
    `grams` are x x^T of the inputs of each weight, folded as the loss, where the rule reads them.
    """

    def __init__(
        self,
        machine: Reference,
        outer: Outer,
        weights: Tensors,
        gradients: Tensors,
        state: Tensors,
        seen: Mapping[str, Matrix | None],
        grams: Tensors | None = None,
        unrolled: bool = False,
    ) -> None:
        self.outer, self.owner, self.seen, self.step = outer, outer.owner, seen, state["step"] // outer.steps
        self.grams, self.unrolled = grams or {}, unrolled
        self.names, self.kept, self.sums = list(weights), state, dict[str, Any]()
        old: dict[str, Any] = {m.id: state[m.id].reshape(1) for m in outer.shared}
        for m in outer.of_tensors:
            old[m.id] = {name: self._as_seen(name, state[f"{m.id}.{name}"], m) for name in weights}
        super().__init__(machine, {}, 0, old)
        self.old: dict[str, Any]  # a dict of tensors where a learner has one for each weight
        self.old[self.owner.id] = {name: self._as_seen(name, w if unrolled else w.detach(), self.owner) for name, w in weights.items()}
        self.values[f"{self.owner.id}.gradient"] = {name: self._as_seen(name, gradients[name], self.owner) for name in weights}

    def _as_seen(self, name: str, x: Tensor, learner: Learner) -> Tensor:
        """A tensor of the shape of a weight as [.., O, I]."""
        matrix = self.seen[name]
        if matrix is None or learner.axes != self.owner.axes:
            return x
        x = x.reshape(*x.shape[: matrix.copies], x.shape[matrix.copies : matrix.copies + matrix.first].numel(), -1)
        return x if matrix.transposed else x.mT

    def _as_stored(self, name: str, x: Tensor, learner: Learner, like: Tensor) -> Tensor:
        matrix = self.seen[name]
        turned = matrix is not None and learner.axes == self.owner.axes and not matrix.transposed
        return (x.mT if turned else x).reshape(like.shape)

    def _kept_graph(self, x: Tensor) -> Tensor:
        """A new state; a constant, unless updates are unrolled."""
        return x if self.unrolled else x.detach()

    def _begin(self) -> None:
        """An outer level has no sequences."""

    def compute(self, flow: Flow, args: list[Any]) -> Any:
        if flow.op == "total":
            return torch.stack([x.sum() for x in args[0].values()]).sum().reshape(1)
        if flow.op == "age":
            period = self.outer.period(self.graph.learners[flow.attr("learner")])
            return ((self.step + 1) // period).to(self.machine.dtype).reshape(1)
        if flow.op == "due":
            ends = int(self.step + 1) % self.outer.period(self.graph.learners[flow.attr("learner")]) == 0
            return torch.full((1,), float(ends), dtype=self.machine.dtype)
        if flow.op == "weights":
            return self._advanced(self.owner) if flow.attr("state") == "after" else self.old[self.owner.id]
        if flow.op == "rows":
            return self.grams
        if flow.op == "erase":
            return {name: w @ self.grams[name] for name, w in self.old[self.owner.id].items()}
        if flow.op == "size":
            place = [axis.name for axis in self.owner.axes].index(flow.attr("axis")) - len(self.owner.axes)
            return {name: torch.tensor(float(x.shape[place]), dtype=x.dtype) for name, x in self.old[self.owner.id].items()}
        if flow.op == "folded":
            learner = self.graph.learners[flow.attr("learner")]
            self.sums[learner.id] = {
                name: self._as_seen(name, self.kept[f"{learner.id}.sum.{name}"], learner) + x for name, x in args[0].items()
            }
            return self.sums[learner.id]
        if flow.op == "T":
            return {name: x.mT for name, x in args[0].items()}
        if flow.op == "contract":
            return {name: args[0][name] @ args[1][name] for name in self.names}
        if flow.op in ("sum", "mean") and isinstance(args[0], dict):
            axes = self.graph.flows[flow.args[0]].axes
            gone = None if ANY in axes else tuple(i - len(axes) for i, axis in enumerate(axes) if axis not in flow.axes)
            return {name: x if gone == () else getattr(x, flow.op)(gone) for name, x in args[0].items()}
        if OPS[flow.op].elementwise and ANY not in flow.axes and any(isinstance(arg, dict) for arg in args):
            axes_of = [self.graph.flows[arg].axes for arg in flow.args]
            args = [from_right(x, a, flow.axes) if isinstance(x, dict) else x for x, a in zip(args, axes_of, strict=True)]
        if OPS[flow.op].elementwise or not any(isinstance(arg, dict) for arg in args):
            return super().compute(flow, args)
        return {name: super(OuterUpdate, self).compute(flow, [self._row(arg, name) for arg in args]).squeeze(0) for name in self.names}

    def _row(self, arg: Any, name: str) -> Tensor:
        """A value of one weight as the one row of a batch."""
        x: Tensor = arg[name].unsqueeze(0) if isinstance(arg, dict) else arg
        return x

    def gradient(self, learner: Learner, number: int = 0) -> Any:
        """The gradient of a learner inside the rule, tensor by tensor."""
        write = learner.writes[number]
        assert write.pred is not None
        base = self.base(learner)
        many = isinstance(base, dict)
        w = {name: x.detach().requires_grad_() for name, x in (base if many else {"": base}).items()}
        self.values[write.pred] = w if many else w[""]
        loss = self.flow(write.loss)
        losses = list(loss.values()) if isinstance(loss, dict) else [loss.sum()]
        if not losses[0].requires_grad:
            return {name: torch.zeros_like(x) for name, x in w.items()} if many else torch.zeros_like(w[""])
        grads = torch.autograd.grad(torch.stack(losses).sum(), list(w.values()), materialize_grads=True)
        return dict(zip(w, grads, strict=True)) if many else grads[0]

    def base(self, learner: Learner) -> Any:
        if learner.at == "decayed" and learner.keep is not None:
            return elementwise("mul", [self.flow(learner.keep), self.old[learner.id]], [(), ()], ())
        return self.old[learner.id]

    def _keep(self, learner: Learner, keep: str | None) -> Any:
        return self.flow(keep) if keep is not None else torch.ones(1, dtype=self.machine.dtype)

    def _advanced(self, learner: Learner) -> Any:
        assert learner.rule.step is not None
        kept = elementwise("mul", [self._keep(learner, learner.keep), self.old[learner.id]], [(), ()], ())
        kept = elementwise("mul", [self._keep(learner, learner.rule.keep), kept], [(), ()], ())
        return elementwise("add", [kept, self.flow(learner.rule.step)], [(), ()], ())

    def update(self, learner: Learner) -> Any:
        if learner.id not in self.new:
            due = int(self.step + 1) % self.outer.period(learner) == 0
            self.new[learner.id] = self._advanced(learner) if due else self.old[learner.id]
        return self.new[learner.id]

    def weights(self, stored: Tensors) -> Tensors:
        """The new weights, of the shapes that they are stored in."""
        new: Tensors = self._advanced(self.owner)
        return {name: self._as_stored(name, x, self.owner, stored[name]) for name, x in new.items()}

    def states(self) -> Tensors:
        """The new states."""
        found = {m.id: self._kept_graph(self.update(m)).reshape(()) for m in self.outer.shared}
        for m in self.outer.of_tensors:
            due = int(self.step + 1) % self.outer.period(m) == 0
            parts = {m.id: self.update(m)}
            for flow in self.outer.gathered(m):
                total = self.flow(flow.id)
                parts[self.outer.sum_of(m.id)] = {name: torch.zeros_like(x) if due else x for name, x in total.items()}
            for key, tensors in parts.items():
                for name, x in tensors.items():
                    found[f"{key}.{name}"] = self._as_stored(name, self._kept_graph(x), m, self.kept[f"{key}.{name}"])
        return found


def from_right(tensors: Tensors, axes: Axes, target: Axes) -> Tensors:
    """Tensors [.., *axes] as [.., *target], with length 1 where an axis is missing; copies of a matrix stand before its axes."""
    found = {}
    for name, x in tensors.items():
        whole = x if [axis for axis in target if axis in axes] == list(axes) else x.mT
        for place, axis in reversed(list(enumerate(target))):
            whole = whole if axis in axes else whole.unsqueeze(place - len(target))
        found[name] = whole
    return found


def apply_rule(graph: LevelGraph, weights: Tensors, gradients: Tensors, state: Tensors, params: Tensors) -> tuple[Tensors, Tensors]:
    """One update by a rule by itself (`nlc.graph.alone`): (new weights, new states).

    weights, gradients: any number of tensors by name, matrices [O, I] for a rule that is for them. state: {} before the first update;
    else by learner and name, as returned. params: the inputs of the graph, one number each.
    """
    (outer,) = owners(graph)
    dtype = next(iter(weights.values())).dtype
    known = {"step": torch.zeros((), dtype=torch.int64), **{m.id: torch.full((), m.init.number, dtype=dtype) for m in outer.shared}}
    for key in outer.keys:
        m = graph.learners[outer.learner_of(key)]
        for name, w in weights.items():
            generator = torch.Generator().manual_seed(outer.seed(m))
            known[f"{key}.{name}"] = draw(m.init if key == m.id else ZEROS, outer.shape(m, w.shape), generator, dtype)
    known |= state
    update = OuterUpdate(Reference(graph, {}, dtype), outer, weights, gradients, known, dict.fromkeys(weights))
    update.values.update({name: torch.as_tensor(x, dtype=dtype).reshape(1) for name, x in params.items()})
    return update.weights(weights), {"step": known["step"] + 1, **update.states()}
