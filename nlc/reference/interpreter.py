"""The meaning of a level graph: one token after the other, every learner by its own words. Everything else must agree.

No chunks, no fusion, no symbolic derivation: inner gradients are taken by autograd at the state `at` names. Slow and
literal on purpose. Any dtype; differentiable in parameters, inputs and initial state, once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nlc.graph.constants import NORM_EPS
from nlc.graph.ir import ANY, Axes, Axis, Flow, Init, Learner, LevelGraph, Write, moves_tensors, pred_id, size_of
from nlc.graph.ops import carries
from nlc.graph.outer import matrix_of, outer_states, owners
from nlc.graph.segments import PENDING, carried, first_of, first_owner, is_apart, is_segmented, truncation
from nlc.graph.state import (
    StateTensor,
    folding,
    joined_states,
    keeps_add_up,
    needs_anchor,
    needs_kept,
    running,
)
from nlc.reference.context import Context
from nlc.reference.operators import LAST_AXIS, PRODUCTS, align, elementwise, inverse_root, newton_schulz, recall_map, rope, solved_slope

Tensors = dict[str, Tensor]
PARTS = ("anchor", "kept", "sum")
"""What a learner carries beside its tensor; see `nlc.graph.state`."""


def draw(init: Init, shape: tuple[int, ...], generator: torch.Generator | None, dtype: torch.dtype) -> Tensor:
    """A parameter or a constant initial state; `shape` without the batch."""
    match init.distribution:
        case "zeros":
            return torch.zeros(shape, dtype=dtype)
        case "ones":
            return torch.ones(shape, dtype=dtype)
        case "constant":
            return torch.full(shape, init.args[0], dtype=dtype)
        case "eye":
            return torch.eye(shape[-2], shape[-1], dtype=dtype).expand(shape).clone()
        case "normal":
            return torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype) * init.args[0]
        case "uniform":
            low, high = init.args
            return torch.rand(shape, generator=generator, dtype=torch.float32).to(dtype) * (high - low) + low
    raise AssertionError(init)


def _plain(tensors: Mapping[str, Tensor]) -> Tensors:
    """Without tensors of the inference mode, which autograd cannot use."""
    return {name: x.clone() if x.is_inference() else x for name, x in tensors.items()}


class Reference:
    """Interprets a graph after `expand-templates`, with these parameters (names as in `graph.parameter_name`)."""

    def __init__(
        self, graph: LevelGraph, parameters: Mapping[str, Tensor] | None = None, dtype: torch.dtype = torch.float64, cut: int = 0
    ) -> None:
        """cut: before every so many tokens the outer gradient passes by no state but those of learners of the loss; 0: it always does."""
        self.graph, self.dtype, self.cut = graph, dtype, cut
        self.parameters: Tensors = dict(parameters) if parameters is not None else self.draw_parameters(0)
        self._sample_graphs: dict[str, LevelGraph] = {}

    @cached_property
    def states(self) -> tuple[StateTensor, ...]:
        """What ticks hand on; `carried` has what a stream keeps beside."""
        return running(self.graph)

    @cached_property
    def joined(self) -> dict[str, tuple[str, ...]]:
        """The states that ticks see side by side, by the key that they call them together."""
        return joined_states(self.graph)

    def sample_graph(self, learner: Learner, axis: Axis, members: Iterable[str]) -> LevelGraph:
        """The graph as one of the samples that a token holds sees it: nothing has their axis."""
        if learner.id not in self._sample_graphs:
            flows = {id: flow.without(axis) for id, flow in self.graph.flows.items()}
            alone = {id: replace(self.graph.learners[id], samples=None) for id in members}
            self._sample_graphs[learner.id] = self.graph.with_(flows=flows, learners={**self.graph.learners, **alone})
        return self._sample_graphs[learner.id]

    def draw_parameters(self, seed: int) -> Tensors:
        """In the order of the graph, from one generator: the same numbers for every backend."""
        generator = torch.Generator().manual_seed(seed)
        return {
            self.graph.parameter_name(m): draw(m.init, tuple(a.size for a in m.axes), generator, self.dtype) for m in self.graph.parameters
        }

    def initial_state(self, batch: int) -> Tensors:
        state: Tensors = {}
        for item in carried(self.graph):
            shape = tuple(axis.size for axis in item.axes)
            init = item.init if item.kind != "owned" else first_of(self.graph, str(item.learner))
            if init.learned:
                first = str(item.learner) if item.kind != "owned" else first_owner(self.graph, str(item.learner))
                value = self.parameters[f"{first}.init"]
            else:
                generator = torch.Generator().manual_seed(item.seed)
                value = draw(init, shape, generator, torch.int64 if item.is_integer else self.dtype)
            state[item.key] = value if item.kind == "position" or item.shared else value.expand(batch, *shape)
        return state

    def run(
        self, inputs: Mapping[str, Tensor], state: Mapping[str, Tensor] | None = None, frozen: Collection[str] = ()
    ) -> tuple[Tensors, Tensors]:
        """inputs [B, T, *axes] -> outputs [B, T, *axes], state. With a loss, outputs also hold `loss` [B, T] and `scored`.

        frozen: keys of states of learners of the loss that stay as they are. Inner gradients are taken by autograd, so it is on here
        whatever the caller's mode; then results are detached.
        """
        if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            return self._run(inputs, state, frozen)
        with torch.inference_mode(False), torch.enable_grad():
            made = self._run(_plain(inputs), None if state is None else _plain(state), frozen)
            return tuple({name: x.detach() for name, x in part.items()} for part in made)  # type: ignore[return-value]

    def end(self, state: Mapping[str, Tensor], frozen: Collection[str] = ()) -> Tensors:
        """The state of the next sequence, where this one is over: `remainder` says what of it the learners of the loss still learn."""
        with torch.inference_mode(False), torch.enable_grad():
            from nlc.reference.segments import Stream

            state = {key: x.detach() for key, x in _plain(state).items()}
            nothing = {name: state[f"{PENDING}{name}"][:, :0] for name in self.graph.inputs}
            return {key: x.detach() for key, x in Stream(self, nothing, state, frozen).end().items()}

    def _run(self, inputs: Mapping[str, Tensor], state: Mapping[str, Tensor] | None, frozen: Collection[str]) -> tuple[Tensors, Tensors]:
        state = dict(state) if state is not None else self.initial_state(next(iter(inputs.values())).shape[0])
        if is_apart(self.graph):
            from nlc.reference import documents

            made, state = documents.run(self, inputs, state, frozen)
        elif is_segmented(self.graph):
            from nlc.reference.segments import Stream

            made, state = Stream(self, inputs, state, frozen).run()
        else:
            made, state = self.tokens(inputs, state)
        return self._without_unscored(made), state

    def tokens(self, inputs: Mapping[str, Tensor], state: Tensors, before: int = 0) -> tuple[Tensors, Tensors]:
        """One token after the other; `before` of them came earlier in the row."""
        batch, tokens = next(iter(inputs.values())).shape[:2]
        rows: dict[str, list[Tensor]] = {}
        needed = self.graph.upstream(*self.graph.roots())
        state = {**state, **{key: torch.stack([state[part] for part in parts], 1) for key, parts in self.joined.items()}}
        for t in range(tokens):
            place = before + t
            tick = Tick(self, inputs, t, state, cut=place > 0 and self.cut > 0 and place % self.cut == 0)
            for id in self.graph.flows:  # in order: a deep model is not a deep recursion
                if id in needed:
                    tick.flow(id)
            for name, id in self.graph.outputs:
                value = tick.flow(id)
                rows.setdefault(name, []).append(value.expand(batch, *value.shape[1:]))
            for learner, id in self.graph.rows:
                x = align(tick.flow(id), self.graph.flows[id].axes, self.graph.learners[learner].store.in_axes)
                rows.setdefault(f"rows of {learner}", []).append(x.expand(batch, *x.shape[1:]))
            if self.graph.loss is not None:
                scored = tick.scored(batch, tokens)
                rows.setdefault("scored", []).append(scored)
                rows.setdefault("loss", []).append(tick.flow(self.graph.loss).expand(batch))
            if self.graph.starts is not None:
                rows.setdefault("starts", []).append(tick.flow(self.graph.starts).expand(batch) != 0)
            state = tick.advance()
        for key, parts in self.joined.items():
            state |= dict(zip(parts, state.pop(key).unbind(1), strict=True))
        return {name: torch.stack(values, 1) for name, values in rows.items()}, state

    def _without_unscored(self, made: Tensors) -> Tensors:
        """A token before the start of a sequence has no label; the loss is 0 where there is none."""
        starts = made.pop("starts", None)
        if "loss" not in made:
            return made
        scored = made["scored"]
        if starts is not None and any(flow.op == "next" for flow in self.graph.flows.values()):
            scored = torch.cat([scored[:, :-1] & ~starts[:, 1:], scored[:, -1:]], 1)
        return {**made, "scored": scored, "loss": torch.where(scored, made["loss"], 0.0)}

    def fold(self, outputs: Tensors) -> Tensor:
        """The loss as one number: folded as the outer learner says, over the tokens that are scored."""
        return (outputs["loss"] * self.shares(outputs)).sum()

    def shares(self, outputs: Tensors) -> Tensor:
        """How much each token counts in the loss."""
        owner = next((each.owner for each in owners(self.graph)), None)
        fold = owner.fold if owner is not None else {"token": "mean", "row": "mean"}
        scored = outputs["scored"].to(self.dtype)
        if fold["token"] == fold["row"] == "mean":
            return scored / scored.sum()
        rows = scored / scored.sum(1, keepdim=True) if fold["token"] == "mean" else scored
        return rows / len(rows) if fold["row"] == "mean" else rows

    def grams(self, outputs: Tensors) -> Tensors:
        """x x^T of the inputs of a weight, by its name, folded as the loss."""
        found, share = {}, self.shares(outputs).reshape(-1, 1)
        for learner in (id for id, _ in self.graph.rows if self.graph.learners[id].owner is None):
            x = outputs[f"rows of {learner}"].detach().flatten(0, 1).flatten(1)
            found[self.graph.parameter_name(self.graph.learners[learner])] = x.mT @ (share * x)
        return found

    def train_step(self, inputs: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> tuple[Tensor, Tensors, Tensors]:
        """(loss, new parameters, new states of the outer levels); `optimizer` is {} before the first step."""
        from nlc.reference.outer import OuterUpdate

        state = {"step": torch.zeros((), dtype=torch.int64), **self._first_states(), **optimizer}
        begun = self._restarted(state)
        names = list(begun)
        leaves = {name: p.detach().requires_grad_() for name, p in begun.items()}
        machine = Reference(self.graph, leaves, self.dtype, truncation(self.graph))
        outputs, _ = machine.run(inputs)
        loss, grams = machine.fold(outputs), machine.grams(outputs)
        gradients = dict(zip(names, torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True), strict=True))
        new, params = {**state, "step": state["step"] + 1}, dict(begun)
        tensors = {self.graph.parameter_name(m): m for m in self.graph.parameters}
        for outer in owners(self.graph):
            mine = [self.graph.parameter_name(self.graph.learners[id]) for id in outer.owner.owns]
            seen = {name: None if ANY in outer.owner.axes else matrix_of(tensors[name]) for name in mine}
            weights = {name: begun[name] for name in mine}
            given = {name: gradients[name] for name in mine}
            is_due = int(new["step"]) % outer.steps == 0
            if outer.owner.accumulates:
                given = {name: state[outer.accumulated(name)] + x for name, x in given.items()}
                new |= {outer.accumulated(name): torch.zeros_like(x) if is_due else x for name, x in given.items()}
            if not is_due:
                continue
            if outer.owner.accumulates == "mean":
                given = {name: x / outer.steps for name, x in given.items()}
            update = OuterUpdate(self, outer, weights, given, state, seen, grams)
            params.update(update.weights(weights))
            new.update(update.states())
        return loss.detach(), params, new

    def _first_states(self) -> Tensors:
        """The states of the outer levels before the first step."""
        found = {}
        for each in outer_states(self.graph):
            if each.init.as_weights:
                found[each.key] = self.parameters[str(each.parameter)]
            else:
                generator = torch.Generator().manual_seed(each.seed)
                found[each.key] = draw(each.init, each.shape, generator, self.dtype)
        return found

    def _restarted(self, state: Tensors) -> Tensors:
        """The parameters, those that begin anew at this step as what a learner holds of them."""
        params = dict(self.parameters)
        for outer in owners(self.graph):
            restart = outer.owner.restart
            if restart is not None and state["step"] > 0 and state["step"] % restart.every == 0:
                for id in outer.owner.owns:
                    name = self.graph.parameter_name(self.graph.learners[id])
                    params[name] = state[f"{restart.state}.{name}"]
        return params


class Tick:
    """Everything that happens at one token; values are computed when first asked for.

    cut: the outer gradient of the weights passes by no state here, but those of learners of the loss.
    """

    def __init__(self, machine: Reference, inputs: Mapping[str, Tensor], t: int, old: Tensors, cut: bool = False) -> None:
        self.machine, self.graph, self.inputs, self.t = machine, machine.graph, inputs, t
        self.old: dict[str, Any] = dict(old)
        self.values: dict[str, Any] = {}
        self.new: Tensors = {}
        self.slopes: dict[str, Tensors] = {}
        self._cut("truncated")
        if cut:
            inside = [item.key for item in machine.states if item.kind != "owned" and not item.is_integer]
            self.old.update({key: self.old[key].detach() for key in inside})
        self._begin()

    def _cut(self, kind: str) -> None:
        """The outer gradient of states, by `backprop`: `truncated` at every n-th token after the first, `stop` at all."""
        for learner in self.graph.learners.values():
            if learner.backprop.kind != kind or learner.owner is not None or moves_tensors(self.graph.learners, learner.id):
                continue
            mine = [key for key in (learner.id, *(f"{learner.id}.{part}" for part in PARTS)) if key in self.old]
            at, n = self.old.get("position", torch.ones(())), learner.backprop.tokens
            here = ((at > 0) & (at % n == 0) if n else torch.tensor([True])).reshape(-1, *(1 for _ in learner.axes))
            self.old.update({key: torch.where(here, self.old[key].detach(), self.old[key]) for key in mine})

    def _begin(self) -> None:
        """Before anything else: where a sequence starts, or a learner is reset, the states are those of a new stream."""
        if self.graph.starts is not None and "position" in self.old:
            self.old["position"] = torch.where(self.flow(self.graph.starts) != 0, 0, self.old["position"])
        ending = [
            (item, end) for item in self.machine.states if (end := self._end_of(item)) is not None and item.kind not in ("context", "owned")
        ]
        place = {id: i for i, id in enumerate(self.graph.flows)}
        flows = {item.key: self._first_flow(item) for item, _ in ending}
        # what fires a reset, and what a learner begins as, may ask a memory that was reset before
        ending.sort(key=lambda pair: max(place[pair[1]], place[flows[pair[0].key] or pair[1]]))
        new = self.machine.initial_state(1) if ending else {}
        self._cut("stop")
        self._mark_boundaries()
        for item, end in ending:
            fires = (self.flow(end) != 0).reshape(-1, *(1 for _ in item.axes))
            stops = item.learner is not None and self.graph.learners[item.learner].backprop.kind == "stop"
            begun = flows[item.key]
            first = new[item.key] if begun is None else self.flow(begun)
            self.old[item.key] = torch.where(fires, first.detach() if stops else first, self.old[item.key])

    def _first_flow(self, item: StateTensor) -> str | None:
        """The flow that a learner begins as; what a period has gathered begins as zeros."""
        return self.graph.learners[item.learner].first if item.learner is not None and item.kind != "sum" else None

    def _end_of(self, item: StateTensor) -> str | None:
        """The flow that ends what a state holds; a context is never cut, but samples from before its end have no weight."""
        if item.learner is not None:
            return self._root(self.graph.learners[item.learner]).reset
        carrying = (f for f in self.graph.flows.values() if item.kind == "tail" and item.key in (f.attr("tail"), f.attr("learner")))
        return next((flow.args[1] for flow in carrying if flow.op in ("conv", "delay") and len(flow.args) > 1), None)

    def _mark_boundaries(self) -> None:
        """At the first token of a period the anchor moves to the running state, and nothing is gathered yet."""
        for learner in self.graph.learners.values():
            mine = [key for key in (f"{learner.id}.{part}" for part in PARTS) if key in self.old]
            if mine and learner.clock is not None:
                first = self.old[learner.id]
                begins = (self.old["position"] % learner.clock.period == 0).reshape(-1, *(1 for _ in learner.axes))
                for key in mine:
                    self.old[key] = torch.where(begins, torch.zeros_like(first) if key.endswith(".sum") else first, self.old[key])

    # -- flows ------------------------------------------------------------------------------------------------------

    def flow(self, id: str) -> Any:
        if id not in self.values:
            flow = self.graph.flows[id]
            self.values[id] = self.compute(flow, [self.flow(arg) for arg in flow.args])
        return self.values[id]

    def compute(self, flow: Flow, args: list[Any]) -> Any:
        graph = self.graph
        axes = [graph.flows[arg].axes for arg in flow.args]
        match flow.op:
            case "number":
                return torch.tensor([flow.attr("value")], dtype=self.machine.dtype)
            case "input":
                return self.inputs[flow.id][:, self.t]
            case "next":
                return self._next(flow.args[0])
            case "position":
                if args:
                    self.new["position"] = self.old["position"] + 1
                return self.old["position"].to(self.machine.dtype).reshape(-1)
            case "new":
                last, self.new[flow.attr("tail")] = self.old[flow.attr("tail")], args[0]
                return (args[0] != last).to(self.machine.dtype)
            case "recall":
                answer = self.solved if flow.attr("inverse") else self.recall
                return answer(graph.learners[flow.attr("learner")], flow.attr("state"), args, axes)
            case "gradient":
                return self.gradient(graph.learners[flow.attr("learner")], flow.attr("write") or 0)
            case "tensor":
                return self.tensor(flow) if flow.attr("pred") or not args else args[0]
            case "contract" | "outer":
                return PRODUCTS[flow.op](args[0], args[1], axes, flow.axes[: flow.attr("copies")])
            case "proximal":
                return self.proximal(graph.learners[flow.attr("learner")], args[0], axes[0])
            case "erase":
                return self.erased(graph.learners[flow.attr("learner")], args[0], axes[0])
            case "conv":
                return self._conv(flow, args[0])
            case "delay":
                rows = self.old[flow.attr("tail")]
                self.new[flow.attr("tail")] = torch.cat([rows, args[0][:, None].expand(len(rows), -1, *args[0].shape[1:])], 1)[:, 1:]
                return rows[:, -flow.attr("by")]
            case "attend":
                return Context(self, graph.learners[flow.attr("learner")]).attend(args[0], axes[0], args[1:])
            case "embed":
                return self.parameter(flow)[args[0]]
            case "project":
                slow = [graph.learners[id] for id in flow.attr("learners")]
                return torch.cat([self.recall(m, "start", args, axes).flatten(1) for m in slow], 1)
            case "part":
                start, size = flow.attr("start"), flow.attr("size")
                return args[0][:, start : start + size].unflatten(1, [axis.size for axis in flow.axes])
            case "pick":
                return args[0].select(1, flow.attr("index"))
            case "slice":
                return args[0].narrow(-1, flow.attr("start"), flow.axes[-1].size)
            case "padded":
                return torch.nn.functional.pad(args[0], (flow.attr("start"), flow.axes[-1].size - axes[0][-1].size - flow.attr("start")))
            case "reshape":
                return args[0].reshape(-1, *(axis.size for axis in flow.axes))
            case "newton_schulz":
                dtype = getattr(torch, flow.attr("dtype")) if flow.attr("dtype") else args[0].dtype
                return newton_schulz(args[0], flow.attr("steps"), flow.attr("coefficients"), dtype)
            case "T":
                return args[0].mT
            case "inverse_root":
                return inverse_root(args[0], flow.attr("power"), flow.attr("eps"))
            case "eigenbasis":
                return torch.linalg.eigh(args[0])[1]
            case "age":  # a learner of a rule of a token memory has made one update a token, or one a period
                ticking = folding(graph, graph.learners[flow.attr("learner")])
                period = ticking.clock.period if ticking is not None and ticking.clock is not None else 1
                return ((self.old["position"] + 1) // period).to(self.machine.dtype).reshape(-1)
            case "boundary":
                ends, period = 1 if flow.attr("last") else 0, flow.attr("period")  # a period of 0 begins at the first token alone
                at = self.old["position"] + ends
                return ((at % period if period else at) == 0).to(self.machine.dtype).reshape(-1)
            case "folded":
                return self._summed(graph.learners[flow.attr("learner")], args[0])
            case "sum" | "mean":
                dims = [1 + i for i, axis in enumerate(axes[0]) if axis not in flow.axes]
                return args[0] if not dims else args[0].sum(dims) if flow.op == "sum" else args[0].mean(dims)
            case "dot":
                return elementwise("mul", args, axes, max(axes, key=len)).sum(-1)
            case "rope":
                return rope(args[0], align(args[1], axes[1], axes[0][:-1]), flow.attr("theta"))
            case "cross_entropy":
                return torch.logsumexp(args[0], -1) - args[0].gather(-1, args[1][:, None].clamp(min=0)).squeeze(-1)
            case op if op in LAST_AXIS:
                eps = flow.attr("eps")
                normal = LAST_AXIS[op](args[0], NORM_EPS if eps is None else eps)
                return normal if flow.attr("learner") is None else normal * self.parameter(flow)
        return elementwise(flow.op, args, axes, flow.axes)

    def parameter(self, flow: Flow) -> Tensor:
        return self.machine.parameters[self.graph.parameter_name(self.graph.learners[flow.attr("learner")])]

    def _next(self, name: str) -> Tensor:
        if "targets" in self.inputs:
            return self.inputs["targets"][:, self.t]
        x = self.inputs[name]
        return x[:, min(self.t + 1, x.shape[1] - 1)]

    def scored(self, batch: int, tokens: int) -> Tensor:
        """Which rows have a label at this token: those with a target >= 0, else all but at the last token of the call."""
        if not any(flow.op == "next" for flow in self.graph.flows.values()):
            return torch.ones(batch, dtype=torch.bool)
        if "targets" in self.inputs:
            return self.inputs["targets"][:, self.t] >= 0
        return torch.full((batch,), self.t + 1 < tokens)

    def _conv(self, flow: Flow, x: Tensor) -> Tensor:
        """y_t = sum over j of W[j] x_{t - width + 1 + j}."""
        W, key = self.parameter(flow), flow.attr("learner")
        if flow.attr("width") == 1:
            return x * W[0]
        rows = torch.cat([self.old[key], x[:, None]], 1)
        self.new[key] = rows[:, 1:]
        return (rows * W).sum(1)

    def _axes(self, id: str) -> Any:
        return self.graph.flows[id].axes

    # -- learners ---------------------------------------------------------------------------------------------------

    def recall(self, learner: Learner, state: str, args: list[Tensor], axes: list[Any]) -> Tensor:
        return self.call(learner, self.state(learner, state), args, axes)

    def solved(self, learner: Learner, state: str, args: list[Tensor], axes: list[Any]) -> Tensor:
        """The x with x @ W + ridge * x = q. A singular system has no finite answer."""
        W, inner = self.state(learner, state), (*learner.per, *learner.store.in_axes)
        query, ridge = (
            elementwise("mul", [W.new_ones(1, *(a.size for a in inner)), x], [inner, a], inner) for x, a in zip(args, axes, strict=True)
        )
        n = 1 + len(learner.per)
        q, a, W = query.flatten(n), ridge.flatten(n), W.flatten(n + len(learner.store.in_axes)).flatten(n, -2)
        x, _ = torch.linalg.solve_ex(W.mT + torch.diag_embed(a), q.unsqueeze(-1))
        return x.reshape(-1, *(axis.size for axis in inner))

    def call(self, learner: Learner, w: Tensor, args: list[Tensor], axes: list[Any]) -> Tensor:
        """The function a store is: z @ W, or W itself."""
        store = learner.store
        if not store.in_axes or not args:
            return w
        if store.transposed:
            w = w.movedim(-1, 1 + len(learner.per))
        return recall_map(args[0], axes[0], w, learner.per, store.in_axes, store.out_axes)

    def state(self, learner: Learner, which: str) -> Tensor:
        """The version of a learner's tensor that a call sees."""
        if learner.is_parameter:
            return self.machine.parameters[self.graph.parameter_name(learner)][None]
        if which == "after":
            return self.update(learner)
        if learner.owner is not None:
            return self.old[learner.id][None] if learner.sharing == "shared" else self.old[learner.id]
        if which == "at":
            return self.base(learner)
        if which == "start" and needs_anchor(self.graph, learner):
            return self.old[f"{learner.id}.anchor"]
        return self.old[learner.id]

    def base(self, learner: Learner) -> Tensor:
        """The state at which the gradient is taken."""
        if learner.at == "decayed":
            return self._own_keep(learner) * self.old[learner.id]
        return self.state(learner, "start" if learner.at == "start" else "before")

    def _keep(self, learner: Learner, keep: str | None) -> Tensor:
        """A gate [B, per] with an axis of length 1 for each axis of the tensor."""
        if keep is None:
            return torch.ones((), dtype=self.machine.dtype)
        flow = self.graph.flows[keep]
        ones = self.flow(keep).new_ones((1, *(axis.size for axis in learner.axes)))
        return elementwise("mul", [ones, self.flow(keep)], [learner.axes, flow.axes], learner.axes)

    def _own_keep(self, learner: Learner) -> Tensor:
        return self._keep(learner, learner.keep)

    def tensor(self, flow: Flow) -> Tensor:
        """A tensor of a store that is written out in flows; `pred`: the one that gradients are taken of."""
        learner = self.graph.learners[flow.attr("learner")]
        if flow.attr("pred"):
            self.gradients(learner, flow.attr("write") or 0)
            return self.values[flow.id]
        return self.state(learner, flow.attr("state"))

    def gradients(self, learner: Learner, number: int) -> Tensors:
        """d objective / d tensor at the base state, for one write and all tensors of one function together."""
        key = f"{learner.base} {number}"
        if key not in self.slopes:
            bases = {m.id: self._seen(m, number) for m in self.graph.learners.values() if m.group == learner.base and m.host is None}
            w = {id: (base if base.requires_grad else base.detach().requires_grad_()).clone() for id, base in bases.items()}
            self.values.update({pred_id(id, number): x for id, x in w.items()})
            loss = self.flow(learner.writes[number].loss).sum()
            found: Any = [torch.zeros_like(x) for x in w.values()]
            if loss.requires_grad:
                found = torch.autograd.grad(loss, list(w.values()), create_graph=True, materialize_grads=True)
            self.slopes[key] = dict(zip(w, found, strict=True))
        return self.slopes[key]

    def _seen(self, learner: Learner, number: int) -> Tensor:
        """The base state of a tensor of a function, through its view."""
        leaf = self.graph.flows.get(pred_id(learner.id, number))
        return self.flow(leaf.args[0]) if leaf is not None and leaf.args else self.base(learner)

    def gradient(self, learner: Learner, number: int = 0) -> Tensor:
        """d objective / d tensor at the base state, for one write. Only `pred` depends on the tensor; `self` in the context is constant."""
        if learner.store.form == "tensor":
            return self.gradients(learner, number)[learner.id]
        write = learner.writes[number]
        base = self.base(learner)
        w = (base if base.requires_grad else base.detach().requires_grad_()).clone()
        args = [self.flow(write.key)] if write.key is not None else []
        axes = [self.graph.flows[write.key].axes] if write.key is not None else []
        assert write.pred is not None
        self.values[write.pred] = self.call(learner, w, args, axes)
        self.values[pred_id(learner.id, number)] = w
        loss = self.flow(write.loss).sum()
        if not loss.requires_grad:  # an objective that nothing can change
            return torch.zeros_like(w)
        (gradient,) = torch.autograd.grad(loss, w, create_graph=True, materialize_grads=True)
        return gradient

    def erased(self, learner: Learner, x: Tensor, axes: Axes) -> Tensor:
        """x (x^T W): what a matrix, after the keep of its learner, recalls for its own input, at that input."""
        outer = learner.store.out_axes
        read = self.call(learner, self._kept(learner), [x], [axes])
        sides = [(x, axes), (read, (*learner.per, *outer))]
        if learner.store.transposed:
            sides.reverse()
        return PRODUCTS["outer"](sides[0][0], sides[1][0], [sides[0][1], sides[1][1]], learner.per)

    def proximal(self, learner: Learner, rate: Tensor, axes: Any) -> Tensor:
        """From the kept state to argmin over w of objective(w) + |w - kept|^2 / (2 rate).

        w moves along the key only, w = kept - rate k e^T, so the slope e at the minimum solves e = slope(pred - rate |k|^2 e).
        """
        (write,) = learner.writes
        per, store = learner.per, learner.store
        out = (*per, *store.out_axes)
        keys = [self.flow(write.key)] if write.key is not None else []
        pred = self.call(learner, self.base(learner), keys, [self._axes(id) for id in (write.key,) if id is not None])
        ones = pred.new_ones((1, *(axis.size for axis in out)))
        rate = elementwise("mul", [ones, rate], [out, axes], out)
        key = align(keys[0], self._axes(str(write.key)), (*per, *store.in_axes)).flatten(1 + len(per)) if keys else pred.new_ones(1)
        squared = (key * key).sum(-1)
        scale = rate * squared.reshape(*squared.shape, *(1 for _ in store.out_axes)) if keys else rate
        e = solved_slope(lambda at: self._slope(write, at), pred, scale, size_of(store.out_axes))
        step = -rate * e
        if not keys:
            return step
        both = key.unsqueeze(-1) * step.flatten(1 + len(per)).unsqueeze(-2)
        return both.reshape(both.shape[0], *(axis.size for axis in learner.axes))

    def _slope(self, write: Write, pred: Tensor) -> Tensor:
        """d objective / d pred at a value of `pred`."""
        leaf = (pred if pred.requires_grad else pred.detach().requires_grad_()).clone()
        self._forget(write.loss, str(write.pred))
        self.values[str(write.pred)] = leaf
        return torch.autograd.grad(self.flow(write.loss).sum(), leaf, create_graph=True, materialize_grads=True)[0]

    def _forget(self, loss: str, leaf: str) -> None:
        """Drop the values that depend on a leaf."""
        between = {leaf}
        for id, flow in self.graph.flows.items():
            if between.intersection(flow.args):
                between.add(id)
        for id in between & self.graph.upstream(loss):
            self.values.pop(id, None)

    def _summed(self, learner: Learner, sample: Tensor) -> Tensor:
        """What a period has gathered, with this token."""
        key = f"{learner.id}.sum"
        total = self.old[key] + sample
        self.new[key] = total.detach() if learner.backprop.stops else total
        return self.new[key]

    def _crossed(self, learner: Learner, new: Tensor) -> Tensor:
        """A new state with what `backprop` says of its outer gradient; `first_order`: that of the old state, as it is."""
        if not learner.backprop.stops:
            return new
        old = self.old[learner.id]
        return new.detach() if learner.backprop.kind == "stop" else new.detach() + (old - old.detach())

    def _waits(self, learner: Learner) -> Tensor:
        """Is the update of this token one of a period that is not over? One answer for all rows, or one for each."""
        memory = folding(self.graph, learner)
        if memory is None or memory.clock is None:
            return torch.tensor([False])
        return ((self.old["position"] + 1) % memory.clock.period != 0).reshape(-1)

    def _kept(self, learner: Learner) -> Tensor:
        """keep . w; where a period is folded, the keeps of its tokens one after the other."""
        keep, key = self._own_keep(learner), f"{learner.id}.kept"
        if needs_kept(self.graph, learner):
            kept = keep * self.old[key]
            self.new[key] = kept.detach() if learner.backprop.stops else kept
            return self.new[key]
        if keeps_add_up(learner) and learner.clock is not None:
            keep = keep**learner.clock.period
        return keep * self.old[learner.id]

    def update(self, learner: Learner) -> Tensor:
        """w <- keep . w + step (docs/semantics.md, "One equation")."""
        if learner.id not in self.new and learner.samples is not None:
            self.new.update(self._sample_by_sample(self._root(learner)))
        if learner.id not in self.new:
            waits, rule, old = self._waits(learner), learner.rule, self.old[learner.id]
            assert rule.step is not None
            new = old if waits.all() else self._keep(learner, rule.keep) * self._kept(learner) + self.flow(rule.step)
            self.new[learner.id] = torch.where(waits.reshape(-1, *(1 for _ in learner.axes)), old, new) if waits.any() else new
            self.new[learner.id] = self._crossed(learner, self.new[learner.id])
        return self.new[learner.id]

    def _root(self, learner: Learner) -> Learner:
        while learner.host is not None:
            learner = self.graph.learners[learner.host]
        return learner

    def _sample_by_sample(self, learner: Learner) -> Tensors:
        """The states of a learner (of all tensors of its function) and of its rule after the samples of this token, one after the other."""
        assert learner.samples is not None
        members = [m.id for m in self.graph.learners.values() if m.writes and self._root(m).base == learner.base]
        states = {id: self.old[id] for id in members}
        for number in range(learner.samples.size):
            sample = SampleTick(self, learner, number, states)
            states = {id: sample.update(sample.graph.learners[id]) for id in members}
        return states

    def advance(self) -> Tensors:
        """All states after this token."""
        for item in self.machine.states:
            if item.kind == "memory":
                self.update(self.graph.learners[item.key])
            elif item.kind in ("anchor", "owned"):
                self.new[item.key] = self.old[item.key]
            elif item.kind == "kept":
                self._kept(self.graph.learners[str(item.learner)])
            elif item.kind in ("position", "place"):
                self.new[item.key] = self.old[item.key] + 1
        for flow in self.graph.flows.values():
            if (flow.op == "folded" and f"{flow.attr('learner')}.sum" in self.old) or carries(flow):
                self.flow(flow.id)
        return {item.key: self.new[item.key] for item in self.machine.states}


class SampleTick(Tick):
    """One of the samples that a token holds: every flow has the entry of this sample, every learner the state left by those before it."""

    def __init__(self, token: Tick, learner: Learner, number: int, states: Tensors) -> None:
        axis = learner.samples
        assert axis is not None
        self.token, self.learner, self.number, self.axis = token, learner, number, axis
        self.machine, self.inputs, self.t = token.machine, token.inputs, token.t
        self.graph = token.machine.sample_graph(learner, axis, states)
        self.old, self.values, self.new, self.slopes = {**token.old, **states}, {}, {}, {}
        self.own: dict[str, bool] = {}

    def flow(self, id: str) -> Any:
        if id not in self.values and not self._moves(id):
            whole, axes = self.token.flow(id), self.token.graph.flows[id].axes
            self.values[id] = whole.select(1 + axes.index(self.axis), self.number) if self.axis in axes else whole
        return super().flow(id)

    def _moves(self, id: str) -> bool:
        """Does a flow depend on the states that the samples change?"""
        if id not in self.own:
            flow = self.graph.flows[id]
            named = str(flow.attr("learner"))
            inner = named in self.graph.learners and self._root(self.graph.learners[named]).base == self.learner.base
            leaf = inner and (
                flow.op in ("pred", "gradient", "proximal", "erase") or (flow.op in ("recall", "tensor") and self._is_inside(flow))
            )
            self.own[id] = leaf or any(map(self._moves, flow.args))
        return self.own[id]

    def _is_inside(self, flow: Flow) -> bool:
        return self.graph.learners[flow.attr("learner")].host is not None or flow.attr("state") == "at"

    def _own_keep(self, learner: Learner) -> Tensor:
        """A keep without an entry for each sample acts before the first."""
        once = learner.host is None and learner.keep is not None and self.axis not in self.token.graph.flows[learner.keep].axes
        return torch.ones((), dtype=self.machine.dtype) if once and self.number > 0 else super()._own_keep(learner)
