"""Learners that are solved exactly, query by query, over the samples of their context: softmax attention and its kin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nlc.graph.ir import Learner, Solve
from nlc.graph.state import context_keys, longest_window, sample_axes
from nlc.reference.operators import align, elementwise

if TYPE_CHECKING:
    from nlc.reference.interpreter import Tick


class Context:
    """What a learner knows at one token; the samples that go on are new states of the tick."""

    def __init__(self, tick: Tick, learner: Learner) -> None:
        assert learner.solve is not None
        self.tick, self.graph, self.learner, self.solve = tick, tick.graph, learner, learner.solve

    def attend(self, query: Tensor, axes: Any, samples: list[Tensor]) -> Tensor:
        """The minimum over w of sum_i weight(q, k_i) * 0.5 |w - v_i|^2: the weighted mean of the values, sample by sample.

        Samples from before the last start of a sequence have the weight 0.
        """
        one = tuple(axis for axis in sample_axes(self.graph, self.learner, self.solve)[0] if axis != self.solve.axis)
        several = next((axis for axis in axes if axis not in one), None)
        if several is not None:  # a query for each entry of that axis
            rest, place = tuple(axis for axis in axes if axis != several), 1 + axes.index(several)
            answers = [self.attend(each, rest, list(samples)) for each in query.unbind(place)]
            return torch.stack(answers, 1 + len(self.learner.per))
        query = align(query, axes, one)
        starts = self._starts(samples.pop()) if len(samples) % 2 else None
        weights, values = [], []
        for number, context in enumerate(self.solve.contexts):
            for key, value, counts in self._known(number, samples[2 * number], samples[2 * number + 1], starts):
                weights.append(self._weight(context, query, key) * counts)
                values.append(value)
        return torch.stack([w * v for w, v in zip(weights, values, strict=True)]).sum(0) / torch.stack(weights).sum(0)

    def _starts(self, start: Tensor) -> Tensor:
        """Where sequences start among the samples of a context, [B, n]."""
        key, longest = f"{self.learner.id}.starts", longest_window(self.solve)
        starts = torch.cat([self.tick.old[key], (start != 0).to(self.tick.old[key].dtype).expand(len(self.tick.old[key]))[:, None]], 1)
        starts = starts[:, -longest:] if longest else starts
        self.tick.new[key] = starts[:, 1:] if longest and starts.shape[1] == longest else starts
        return starts

    def _known(self, number: int, key: Tensor, value: Tensor, starts: Tensor | None) -> list[tuple[Tensor, Tensor, Any]]:
        """The keys and values that a token sees of one write, and whether each counts; those of the tokens go on as state."""
        context = self.solve.contexts[number]
        inner, out = sample_axes(self.graph, self.learner, context)
        ones = torch.ones(1, *(a.size for a in out), dtype=value.dtype)
        value = elementwise("mul", [ones, value], [out, self.axes(context.value)], out)
        key = align(key, self.axes(context.key), inner)
        rows = [(key, value, 1)] if context.once else self._stored(number, key, value, starts)
        if context.axis is None:
            return rows
        return [(k, v, counts) for keys, values, counts in rows for k, v in zip(keys.unbind(1), values.unbind(1), strict=True)]

    def _stored(self, number: int, key: Tensor, value: Tensor, starts: Tensor | None) -> list[tuple[Tensor, Tensor, Any]]:
        """The samples of the tokens that this one sees, itself included; 0 for those with a start after them."""
        over, rows = self.solve.contexts[number].over, []
        for name, new in zip(context_keys(self.learner, number), (key, value), strict=True):
            old = self.tick.old[name]
            if old.shape[1] == self.solve.every:  # a segment begins: what the one before held is forgotten
                old = old[:, :0]
            row = torch.cat([old, new[:, None].expand(len(old), *new[:, None].shape[1:])], 1)
            row = row[:, -over:] if over else row
            self.tick.new[name] = row[:, 1:] if over and row.shape[1] == over else row
            rows.append(row.unbind(1))
        counts: list[Any] = [1] * len(rows[0])
        if starts is not None:
            later = (starts.flip(1).cumsum(1).flip(1) - starts)[:, -len(counts) :]
            ones = [1] * len((*self.learner.per, *self.learner.store.out_axes))
            counts = [(each == 0).reshape(-1, *ones) for each in later.unbind(1)]
        return list(zip(*rows, counts, strict=True))

    def _weight(self, context: Solve, query: Tensor, key: Tensor) -> Tensor:
        """The weight of one sample [B, per, 1 for each axis of the value]."""
        known: dict[str, Tensor] = {context.query: query, context.sample: key}

        def value(id: str) -> Tensor:
            if id not in known:
                flow = self.graph.flows[id]
                known[id] = self.tick.compute(flow, [value(arg) for arg in flow.args])
            return known[id]

        axes = (*self.learner.per, *self.learner.store.out_axes)
        ones = torch.ones(1, *(1 if a in self.learner.store.out_axes else a.size for a in axes), dtype=query.dtype)
        return elementwise("mul", [ones, value(context.weight)], [axes, self.axes(context.weight)], axes)

    def axes(self, id: str) -> Any:
        return self.graph.flows[id].axes
