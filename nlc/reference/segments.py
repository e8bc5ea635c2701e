"""The meaning of learners of the loss while tokens come (`nlc.graph.segments`): a boundary after the other, row by row.

In a segment, the tokens between two boundaries, their tensors stay. At its end the gradients of the losses of its tokens are known, taken
of what the segment read; at the end of a period the rule is applied to their sum. Each row is a stream of its own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nlc.graph.ir import ANY
from nlc.graph.outer import Outer, loss_levels, matrix_of
from nlc.graph.segments import (
    COUNT,
    LABELS,
    PENDING,
    POSITION,
    START,
    UNKNOWN,
    ages,
    begun_as,
    carried,
    gram_of,
    held,
    lasts,
    needs_sum,
    pending,
    periods,
    restarts,
    sum_of,
)
from nlc.graph.sequences import document
from nlc.graph.state import state_tensors
from nlc.reference.outer import OuterUpdate

if TYPE_CHECKING:
    from nlc.reference.interpreter import Reference

Tensors = dict[str, Tensor]


class Stream:
    """A call on a stream: what was pending, and the tokens that come."""

    def __init__(self, machine: Reference, inputs: Mapping[str, Tensor], state: Mapping[str, Tensor], frozen: Collection[str] = ()) -> None:
        self.machine, self.graph, self.frozen = machine, machine.graph, frozen
        self.levels, self.periods = loss_levels(self.graph), periods(self.graph)
        self.inside = [item.key for item in state_tensors(self.graph) if item.kind != "owned"]
        self.asks_next = [flow.args[0] for flow in self.graph.flows.values() if flow.op == "next"]
        self.known = int(state[f"{PENDING}{self.graph.inputs[0]}"].shape[1])
        self.position = int(state[POSITION])
        self.inputs = {name: torch.cat([state[f"{PENDING}{name}"].to(x.dtype), x], 1) for name, x in inputs.items() if name != "targets"}
        self.tokens = next(iter(self.inputs.values())).shape[1]
        self.labels = self._labels(inputs, state) if self.asks_next else None
        self.begun = {key: state[f"{START}{key}"] for key in self.inside}
        aside = {*self.begun, *pending(self.graph)}
        self.levels_state = {key: x for key, x in state.items() if key not in aside}
        self.first = dict(self.levels_state)

    def _labels(self, inputs: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Tensor:
        """The label of each token: as given, else the input of the next one."""
        x = self.inputs[self.asks_next[0]]
        mine = inputs["targets"] if "targets" in inputs else torch.full_like(x[:, self.known :], UNKNOWN)
        given = torch.cat([state[LABELS], mine], 1)
        shifted = torch.cat([x[:, 1:], torch.full_like(x[:, :1], UNKNOWN)], 1)
        labels = torch.where(given == UNKNOWN, shifted, given)
        of = document(self.graph)
        if of is None:
            return labels
        ends = self.inputs[of][:, 1:] != self.inputs[of][:, :-1]  # the last token of a sequence has no label
        return torch.cat([torch.where(ends, -1, labels[:, :-1]), labels[:, -1:]], 1)

    def run(self) -> tuple[Tensors, Tensors]:
        """Outputs of the tokens of this call, and the new state."""
        rows: list[Tensors] = []
        begin = 0
        while begin < self.tokens:
            self._restart(self.position + begin)
            if begin and self.machine.cut and (self.position + begin) % self.machine.cut == 0:
                self._cut()
            end = min(begin + min(n - (self.position + begin) % n for n in self.periods), self.tokens)
            full = any((self.position + end) % n == 0 for n in self.periods)
            leaves = self._leaves()
            made, after = self.machine.tokens(self._part(begin, end), {**self.begun, **self.levels_state, **leaves}, self.position + begin)
            rows.append({name: x[:, max(self.known - begin, 0) :] for name, x in made.items()})
            if not full or (self.labels is not None and bool((self.labels[:, end - 1] == UNKNOWN).any())):
                return self._ended(rows, begin, {key: after[key] for key in self.inside})
            self._learn(leaves, made, self.position + end)
            self.begun = {key: after[key] for key in self.inside}
            begin = end
        self._restart(self.position + begin)
        return self._ended(rows, begin, self.begun)

    def _part(self, begin: int, end: int) -> Tensors:
        part = {name: x[:, begin:end] for name, x in self.inputs.items()}
        if self.labels is not None:
            part["targets"] = self.labels[:, begin:end]
        return part

    def _leaves(self) -> Tensors:
        """What this segment reads of each tensor; one that began as another, and passes gradients straight on, is part of that one."""
        leaves: Tensors = {}
        for level in sorted(self.levels, key=lambda level: len(list(begun_as(self.graph, level.owner.owns[0])))):
            for id in level.owner.owns:
                old, of = self.levels_state[id], self.graph.learners[id].init.of
                keeps = old.requires_grad and level.owner.backprop.kind != "stop"
                old = old if keeps else old.detach().requires_grad_()
                straight = of is not None and level.owner.backprop.kind == "first_order"
                leaves[id] = old.detach() + (leaves[str(of)] - leaves[str(of)].detach()) if straight else old.clone()
        return leaves

    def _cut(self) -> None:
        """The outer gradient goes no further back through updates: tensors pass it straight to their first value, all else is constant."""
        for level in (level for level in self.levels if level.owner.backprop.kind == "unrolled"):
            for key in held(self.graph, level):
                x, first = self.levels_state[key].detach(), self.first[key]
                self.levels_state[key] = x + (first - first.detach()) if key in level.owner.owns else x

    def _restart(self, position: int) -> None:
        """Learners with a `reset` begin anew: as what they were declared to begin with holds now, with new states of their rules."""
        for level in self.levels:
            every = restarts(self.graph, level)
            if not every or position % every or position == 0:
                continue
            first = self.machine.initial_state(len(next(iter(self.inputs.values()))))
            mine = [key for key in (*held(self.graph, level), *ages(level)) if key not in (*level.owner.owns, *self.frozen)]
            self.levels_state |= {key: first[key] for key in mine}
            for id in (id for id in level.owner.owns if id not in self.frozen):
                of = self.graph.learners[id].init.of
                self.levels_state[id] = self.levels_state[of] if of is not None else first[id]

    def _gradients(self, leaves: Tensors, made: Tensors) -> Tensors:
        """Those of the losses of a segment."""
        create = any(level.owner.backprop.kind == "unrolled" for level in self.levels)
        loss = torch.where(made["scored"], made["loss"], 0.0).sum()
        found = torch.autograd.grad(loss, list(leaves.values()), create_graph=create, retain_graph=True, materialize_grads=True)
        return dict(zip(leaves, found, strict=True))

    def _learn(self, leaves: Tensors, made: Tensors, position: int) -> None:
        """The gradients of a segment that ends at a boundary, and the updates that are due there, all of what was before them."""
        gradients, new = self._gradients(leaves, made), dict[str, Tensor]()
        for level in self.levels:
            new |= self._learned(level, gradients, self._grams(level, made), position)
        self.levels_state |= {key: x for key, x in new.items() if key not in self.frozen}

    def _grams(self, level: Outer, made: Tensors) -> Tensors:
        """x x^T of the inputs of each tensor, one for each row, over the scored tokens."""
        found = {}
        for id, _ in self.graph.rows:
            if id in level.names:
                x = made[f"rows of {id}"].flatten(2) * made["scored"].unsqueeze(2)
                x = x if level.owner.backprop.kind == "unrolled" else x.detach()
                found[level.names[id]] = x.mT @ x
        return found

    def _no_grams(self, level: Outer) -> Tensors:
        """The same of no token."""
        rows, learners = len(next(iter(self.inputs.values()))), self.graph.learners
        sizes = {id: math.prod(axis.size for axis in learners[id].store.in_axes) for id, _ in self.graph.rows if id in level.names}
        return {level.names[id]: torch.zeros(rows, n, n, dtype=self.machine.dtype) for id, n in sizes.items()}

    def _learned(self, level: Outer, gradients: Tensors, grams: Tensors, position: int, ends: bool = False) -> Tensors:
        """The new tensors and states of one learner; where the sequence ends, of one whose period is open and flushed."""
        shared = level.owner.sharing == "shared"
        given = {name: gradients[id] for id, name in level.names.items()}
        rows = len(next(iter(self.inputs.values())))
        if shared and level.owner.fold["row"] == "mean":
            given = {name: x / rows for name, x in given.items()}
            grams = {name: x / rows for name, x in grams.items()}
        grams = {name: x.sum(0) for name, x in grams.items()} if shared else grams
        sums = {**{sum_of(level, n): n for n in given}, **{gram_of(level, n): n for n in grams}}
        open_for, new = position % level.steps, dict[str, Tensor]()
        due = bool(open_for) == ends and (level.owner.remainder == "flush" or not ends)
        if needs_sum(self.graph, level):
            given = {name: self.levels_state[sum_of(level, name)] + x for name, x in given.items()}
            grams = {name: self.levels_state[gram_of(level, name)] + x for name, x in grams.items()}
            both = {**{sum_of(level, n): x for n, x in given.items()}, **{gram_of(level, n): x for n, x in grams.items()}}
            new = {key: torch.zeros_like(x) if due else x for key, x in both.items() if key in sums}
        if not due:
            return new
        if level.owner.fold["token"] == "mean":
            given = {name: x / (open_for or level.steps) for name, x in given.items()}
            grams = {name: x / (open_for or level.steps) for name, x in grams.items()}
        every, before = restarts(self.graph, level), position - level.steps
        step = torch.tensor(before % every if every else before)
        for age in ages(level):
            step, new[age] = self.levels_state[age] * level.steps, self.levels_state[age] + 1
        if shared:
            return {**new, **self._applied(level, given, grams, self.levels_state, step)}
        parts = [[{key: x[i] for key, x in part.items()} for part in (given, grams, self._own(level))] for i in range(rows)]
        each = [self._applied(level, part[0], part[1], part[2], step) for part in parts]
        return {**new, **{key: torch.stack([row[key] for row in each]) for key in each[0]}}

    def _own(self, level: Outer) -> Tensors:
        """The tensors of a learner and the states of its rule."""
        return {key: x for key, x in self.levels_state.items() if key.startswith(f"{level.owner.id}.") and key not in ages(level)}

    def _applied(self, level: Outer, gradients: Tensors, grams: Tensors, state: Tensors, step: Tensor) -> Tensors:
        """One application of the rule to the tensors of one row."""
        learners, unrolled = self.graph.learners, level.owner.backprop.kind == "unrolled"
        weights = {name: state[id] for id, name in level.names.items()}
        seen = {name: None if ANY in level.owner.axes else matrix_of(learners[id]) for id, name in level.names.items()}
        update = OuterUpdate(self.machine, level, weights, gradients, {**state, "step": step}, seen, grams, unrolled)
        moved = update.weights(weights)
        found = {id: self._crossed(level, moved[name], state[id]) for id, name in level.names.items()}
        return {**found, **update.states()}

    def _crossed(self, level: Outer, new: Tensor, old: Tensor) -> Tensor:
        """What `backprop` says of the outer gradient of a new tensor."""
        if level.owner.backprop.kind == "unrolled":
            return new
        return new.detach() + (old - old.detach()) if level.owner.backprop.kind == "first_order" else new.detach()

    def end(self) -> Tensors:
        """The sequence is over: the state of the next one. What is pending is learned, its last token without a label, by `remainder`."""
        end, rows = self.position + self.tokens, len(next(iter(self.inputs.values())))
        gradients = {id: torch.zeros_like(self.levels_state[id]) for level in self.levels for id in level.owner.owns}
        grams = {level.owner.id: self._no_grams(level) for level in self.levels}
        if self.tokens:
            self.labels = torch.where(self.labels == UNKNOWN, -1, self.labels) if self.labels is not None else None
            leaves = self._leaves()
            made, _ = self.machine.tokens(self._part(0, self.tokens), {**self.begun, **self.levels_state, **leaves}, self.position)
            if any(end % n == 0 for n in self.periods):
                self._learn(leaves, made, end)
            else:
                gradients = self._gradients(leaves, made)
                grams = {level.owner.id: self._grams(level, made) for level in self.levels}
        new: Tensors = {}
        for level in self.levels:
            new |= self._learned(level, gradients, grams[level.owner.id], end, ends=True)
        self.levels_state |= {key: x for key, x in new.items() if key not in self.frozen}
        lasting = (key for level in self.levels if level.owner.sharing != "sequence" for key in lasts(self.graph, level))
        kept = {key: self.levels_state[key].detach() for key in (*lasting, *self.frozen)}
        return {**self.machine.initial_state(rows), **kept}

    def _ended(self, rows: list[Tensors], begin: int, now: Tensors) -> tuple[Tensors, Tensors]:
        """What a call returns: the tokens from `begin` on are pending."""
        state = {**now, **self.levels_state, POSITION: torch.tensor(self.position + begin)}
        state |= {f"{START}{key}": x for key, x in self.begun.items()}
        state |= {f"{PENDING}{name}": x[:, begin:] for name, x in self.inputs.items()}
        if self.labels is not None:
            state[LABELS] = self.labels[:, begin:]
        made = {name: torch.cat([part[name] for part in rows], 1) for name in rows[0]}
        return made, {item.key: state[item.key] for item in carried(self.graph) if item.key != COUNT}
