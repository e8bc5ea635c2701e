"""Quarry of generated modules whose learners of the loss learn while tokens come: a stream, segment by segment.

Such a module has `run` and `losses`, `update` and `restarted`, and tables of what its learners of the loss hold. Axes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

UNKNOWN = -2
"""The label of a token whose next one has not come."""


def labelled(module: Any, inputs: dict[str, Tensor], given: Tensor | None) -> Tensor:
    """The label [B, T] of each token: as given, else the input of the next one; the last token of a sequence has none."""
    x = inputs[module.LABEL]
    shifted = torch.cat([x[:, 1:], torch.full_like(x[:, :1], UNKNOWN)], 1)
    labels = shifted if given is None else torch.where(given == UNKNOWN, shifted, given)
    if module.DOCUMENT is not None:
        of = inputs[module.DOCUMENT]
        labels[:, :-1].masked_fill_(of[:, 1:] != of[:, :-1], -1)
    return labels


class Part(NamedTuple):
    """Tokens of one segment of a stream.

    over: it ends at a boundary and has all its labels. closes: the window of an outer gradient closes with it.
    """

    stream: Any
    begin: int
    end: int
    over: bool
    closes: bool


class Stream:
    """A call on a stream: the tokens that were pending at the last boundary, and those that come.

    Between two boundaries, the multiples of any period, the tensors of learners of the loss stay. At a boundary one backward pass over
    the segment that ends there has the gradients of all of them, and those that are due are updated.
    """

    def __init__(self, module: Any, inputs: dict[str, Tensor], state: dict[str, Tensor], frozen: Collection[str] = ()) -> None:
        self.module, self.position, self.begin = module, int(state.get("pending:position", 0)), 0
        self.frozen, self.learns = frozenset(frozen), any(key not in frozen for key in module.TENSORS)
        given = {name: x for name, x in inputs.items() if name != "targets"}
        pending = {name: state.get(f"pending:{name}", x[:, :0]).to(x.dtype) for name, x in given.items()}
        self.inputs = {name: torch.cat([pending[name], x], 1) if pending[name].shape[1] else x for name, x in given.items()}
        self.rows = len(next(iter(given.values())))
        self.known, self.tokens = (next(iter(each.values())).shape[1] for each in (pending, self.inputs))
        self.labels = self.labelled(inputs, state) if module.LABEL is not None else None
        aside = {"pending:position", "pending:next", *(f"pending:{name}" for name in given), *(f"start:{key}" for key in module.INSIDE)}
        self.states = {key: x for key, x in state.items() if key not in aside}
        self.counts: Tensor | None = None
        self.begun = {key: state.get(f"start:{key}", self.states[key]) for key in module.INSIDE}

    def labelled(self, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> Tensor:
        """The label of each token: as given, else the input of the next one."""
        x = self.inputs[self.module.LABEL]
        before = state.get("pending:next", x[:, :0])
        given = inputs["targets"] if "targets" in inputs else torch.full_like(x[:, self.known :], UNKNOWN)
        return labelled(self.module, self.inputs, torch.cat([before, given], 1))

    def boundary(self, begin: int) -> int:
        """The next one behind a token."""
        return min(begin + period - (self.position + begin) % period for period in self.module.PERIODS)

    def walk(self) -> Iterator[Part]:
        """The segments of the tokens. What a segment makes is known to the stream before the next is asked for."""
        begin = self.begin
        unlabelled = self.labels is not None and bool((self.labels[:, -1] == UNKNOWN).any())
        while begin < self.tokens:
            boundary = self.boundary(begin)
            end = min(boundary, self.tokens)
            closes = end == self.tokens or (self.module.CUT > 0 and (self.position + end) % self.module.CUT == 0)
            yield Part(self, begin, end, end == boundary and not (unlabelled and end == self.tokens), closes)
            begin = end

    def part(self, begin: int, end: int) -> dict[str, Tensor]:
        """The inputs of some tokens, and their labels."""
        found = {name: x[:, begin:end] for name, x in self.inputs.items()}
        return found if self.labels is None else {**found, "targets": self.labels[:, begin:end]}

    def seen(self, begin: int) -> dict[str, Tensor]:
        """The same, for results that pass gradients on to earlier segments."""
        straight = self.module.STRAIGHT
        tensors = {key: self.states[key] if key in straight else self.states[key].detach() for key in self.module.TENSORS}
        return {**self.before(begin), **self.followed(tensors)}

    def before(self, begin: int) -> dict[str, Tensor]:
        """The states before a token that is the first of a segment, or the first of this call."""
        return {**self.states, **self.begun} if begin == self.begin else dict(self.states)

    def leaves(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What a segment reads of each tensor, with gradients of its own, and the leaves that it is made of."""
        roots = {key: self.states[key].detach().requires_grad_() for key in self.module.TENSORS}
        return self.followed(roots), roots

    def followed(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What began as another tensor, and passes gradients straight on to it, is that one plus a constant."""
        seen = dict(tensors)
        for key, of in self.module.FOLLOWS.items():
            if key not in self.module.UNROLLED:
                seen[key] = passed_on(seen[key], seen[of])
        return seen

    def through(
        self, weights: dict[str, Tensor], begin: int, end: int, over: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """What a segment loses, what of it counts, its values, and what tensors are multiplied with. If it is over, updates are made.

        All of it has outer gradients, those that pass by the updates of `module.UNROLLED` too: the gradients that these are made of
        are differentiated, so compiled functions run as they are written.
        """
        with torch.compiler.set_stance("force_eager"):
            seen = self.followed({key: self.passing(key) for key in self.module.TENSORS})
            made = self.module.losses(self.part(begin, end), {**self.before(begin), **seen}, weights, True)
            lost, scored, values, after, rows = made
            if over and self.learns:
                found = torch.autograd.grad((lost * scored).sum(), list(seen.values()), create_graph=True, materialize_grads=True)
                self.learn(end, dict(zip(seen, found, strict=True)), grams_by_row(rows, scored, self.module.UNROLLED), after)
            elif over:
                self.learn(end, {}, {}, after)
        if not over:
            self.states |= after
        return lost, scored, values, rows

    def passing(self, key: str) -> Tensor:
        """A tensor as a segment reads it: with a gradient of its own, and passing outer gradients on."""
        x = self.states[key]
        passes = x.requires_grad and (key in self.module.STRAIGHT or key in self.module.UNROLLED)
        return x.clone() if passes else x.detach().requires_grad_()

    def cut(self, first: bool) -> dict[str, Tensor]:
        """Outer gradients end here. Returns the tensors, as leaves. At the first token other states keep the gradients that they have."""
        roots = {key: self.states[key].detach().requires_grad_() for key in self.module.TENSORS}
        seen = dict(roots)
        for key, of in self.module.FOLLOWS.items():
            seen[key] = passed_on(seen[key], seen[of])
        if not first:
            self.states = {key: x.detach() for key, x in self.states.items()}
            self.begun = {key: x.detach() for key, x in self.begun.items()}
        self.states |= seen
        return roots

    def gradients(self, begin: int, end: int, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Any]]:
        """Those of the losses of a segment, for what it reads of each tensor, x x^T of the inputs of tensors, and what it makes."""
        with torch.enable_grad():
            seen, _ = self.leaves()
            before = {key: x.detach() for key, x in self.before(begin).items()}
            made = self.module.losses(self.part(begin, end), {**before, **seen}, {k: x.detach() for k, x in weights.items()}, True)
            lost, scored, *_, rows = made
            found = torch.autograd.grad((lost * scored).sum(), list(seen.values()), materialize_grads=True)
        return dict(zip(seen, found, strict=True)), grams_by_row(rows, scored), made

    def learn(self, end: int, gradients: dict[str, Tensor], grams: dict[str, Tensor], after: dict[str, Tensor]) -> None:
        """A segment is over: the updates that are due at its end, the states there, and what begins anew; what is frozen stays."""
        if self.module.FOLLOWS or self.module.UNROLLED:  # gradients may be one tensor, and sums are made in place
            gradients = {key: (x if key in self.module.UNROLLED else x.detach()).clone() for key, x in gradients.items()}
        update = self.thawed(self.module.update(self.position + end, self.rows, self.states, gradients, grams) if self.learns else {})
        for key in self.module.STRAIGHT:
            if key in update and self.states[key].requires_grad:
                update[key] = passed_on(update[key], self.states[key])
        self.states |= {**after, **update}
        self.begun, self.begin = {key: self.states[key] for key in self.module.INSIDE}, end
        self.states |= self.thawed(self.module.restarted(self.position + end, self.states))

    def thawed(self, new: dict[str, Tensor]) -> dict[str, Tensor]:
        """Without the states that stay as they are."""
        return {key: x for key, x in new.items() if key not in self.frozen}

    def ended(self) -> dict[str, Tensor]:
        """The state after this call."""
        state = {**self.states, **{f"start:{key}": x for key, x in self.begun.items()}}
        state["pending:position"] = torch.tensor(self.position + self.begin)
        state |= {f"pending:{name}": x[:, self.begin :] for name, x in self.inputs.items()}
        return state if self.labels is None else {**state, "pending:next": self.labels[:, self.begin :]}


def sequence_ended(module: Any, state: dict[str, Tensor], frozen: Collection[str] = ()) -> dict[str, Tensor]:
    """The state of the next sequence. What is pending is learned first, its last token without a label.

    Where its end is no boundary, `module.update` makes those updates that are flushed.
    """
    with torch.inference_mode(False), torch.no_grad():
        state = {key: x.clone() if x.is_inference() else x for key, x in state.items()}
        names = [
            key.removeprefix("pending:") for key in state if key.startswith("pending:") and key not in ("pending:position", "pending:next")
        ]
        stream = Stream(module, {name: state[f"pending:{name}"][:, :0] for name in names}, state, frozen)
        if stream.learns:
            learn_the_rest(stream)
        first = module.initial_state(stream.rows, {key: x for key, x in stream.states.items() if x.is_floating_point()})
        return {**first, **{key: stream.states[key] for key in (*module.LASTING, *frozen)}}


def learn_the_rest(stream: Stream) -> None:
    """What is pending, and the periods that are open, where a sequence ends."""
    module, end = stream.module, stream.position + stream.tokens
    gradients = {key: torch.zeros_like(stream.states[key]) for key in module.TENSORS}
    like = next(iter(gradients.values()))
    grams = {key: like.new_zeros(stream.rows, n, n) for key, n in module.INPUTS.items()}
    if stream.tokens:
        if stream.labels is not None:
            stream.labels.masked_fill_(stream.labels == UNKNOWN, -1)
        found, rows, made = stream.gradients(0, stream.tokens, dict(module.named_parameters()))
        if any(end % period == 0 for period in module.PERIODS):
            stream.learn(stream.tokens, found, rows, made[3])
        else:
            gradients, grams = found, rows
    if module.FOLLOWS or module.UNROLLED:
        gradients = {key: x.clone() for key, x in gradients.items()}
    stream.states |= stream.thawed(module.update(end, stream.rows, stream.states, gradients, grams, ends=True))


Values = tuple[Tensor, Tensor, dict[str, Tensor]]
"""What each token loses, whether that counts, and values by flow."""


def streamed(
    module: Any, inputs: dict[str, Tensor], state: dict[str, Tensor], losses: bool, frozen: Collection[str] = ()
) -> tuple[Values, dict[str, Tensor]]:
    """What the tokens of this call make, and the new state; without `losses` these may be left out.

    frozen: keys of tensors of learners of the loss, and of what they hold beside, that stay as they are. Where gradients are wanted of
    results, they have those of all tokens; updates are constants.
    """
    whole = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    with torch.inference_mode(False):
        inputs, state = ({name: x.clone() if x.is_inference() else x for name, x in each.items()} for each in (inputs, state))
        stream = Stream(module, inputs, state, frozen)
        weights = {name: x if whole else x.detach() for name, x in module.named_parameters()}
        made = [advanced(part, weights, whole, losses) for part in stream.walk()]
        lost, scored = joined([lost for lost, _, _ in made]), joined([scored for _, scored, _ in made])
        values = {id: joined([each[id] for _, _, each in made]) for id in made[0][2]}
        return (lost, scored, values), stream.ended()


def advanced(part: Part, weights: dict[str, Tensor], whole: bool, losses: bool) -> Values:
    """What a segment, or the part of it that this call has, makes of the tokens of this call. One that is over is run from its start."""
    stream, begin, end, over, _ = part
    first = begin if over else max(begin, stream.known)
    if whole and stream.module.UNROLLED:
        lost, scored, values, _ = stream.through(weights, first, end, over)
        earlier = max(stream.known - first, 0)
        return lost[:, earlier:], scored[:, earlier:], {key: x[:, earlier:] for key, x in values.items()}
    learned = stream.gradients(begin, end, weights) if over and stream.learns else None
    if learned is not None and not whole:
        lost, scored, values, after, _ = learned[2]
    else:
        with torch.set_grad_enabled(whole):
            lost, scored, values, after, _ = stream.module.losses(stream.part(first, end), stream.seen(first), weights, losses)
    kept = (lambda x: x) if whole else Tensor.detach
    after = {key: kept(x) for key, x in after.items()}
    if over:
        stream.learn(end, *(learned[:2] if learned is not None else ({}, {})), after)
    else:
        stream.states |= after
    earlier = max(stream.known - first, 0)
    return kept(lost)[:, earlier:], scored[:, earlier:], {key: kept(x)[:, earlier:] for key, x in values.items()}


def joined(parts: Sequence[Tensor]) -> Tensor:
    """[B, T, ..] of the segments of a call."""
    return parts[0] if len(parts) == 1 else torch.cat([*parts], 1)


def passed_on(x: Tensor, to: Tensor) -> Tensor:
    """The number x, whose gradient is that of another tensor."""
    return x.detach() + (to - to.detach())


def grams_by_row(rows: dict[str, Tensor], scored: Tensor, differentiated: Collection[str] = ()) -> dict[str, Tensor]:
    """x x^T [B, I, I] of the inputs of tensors, over the scored tokens."""
    weighed = {key: (x if key in differentiated else x.detach()).flatten(2) * scored.unsqueeze(2) for key, x in rows.items()}
    return {key: x.mT @ x for key, x in weighed.items()}


def trained(
    module: Any, inputs: dict[str, Tensor], shares: Callable[[Tensor], Tensor]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """The loss of a new stream, the gradients of the parameters, and x x^T of the inputs of weights, segment by segment.

    No gradient passes by a state at the multiples of `module.CUT`. Where these are all boundaries and all losses count alike, one
    backward pass over a segment has the gradients of its learners of the loss and of the parameters. `shares` of the scored tokens [B, T]
    says how much each counts.
    """
    weights = dict(module.named_parameters())
    stream = Stream(module, inputs, module.initial_state(next(iter(inputs.values())).shape[0], inputs))
    stream.states |= {key: stream.states[key].detach() for key in module.TENSORS}
    counts = scored_of(stream.labels, next(iter(stream.inputs.values())), next(iter(weights.values())))
    share = shares(counts)
    stream.counts, scale = (counts, share.max()) if module.ALIKE else (share, share.new_ones(()))
    window = Window(module, weights)
    (through_updates if module.UNROLLED else by_segments)(stream, window)
    return window.loss * scale, scaled(window.gradient, scale), scaled(window.grams, scale)


def through_updates(streams: Stream, window: Window) -> None:
    """Segments whose updates are differentiated: one backward pass from cut to cut."""
    for stream, begin, end, over, closes in streams.walk():
        opens = (stream.position + begin) % stream.module.CUT == 0
        roots = stream.cut(not begin) if opens or not begin else {}
        lost, _, _, rows = stream.through(window.weights, begin, end, over)
        window.add(stream.counts[:, begin:end], lost, roots, rows)
        if closes:
            window.closed([])
    window.closed([])


def by_segments(streams: Stream, window: Window) -> None:
    """Segments whose updates are constants: a backward pass from cut to cut, and one a segment that may be the same."""
    module, weights = streams.module, window.weights
    for stream, begin, end, over, closes in streams.walk():
        if begin and (stream.position + begin) % module.CUT == 0:
            stream.begun = {key: x.detach() for key, x in stream.begun.items()}
        alone = over and closes and module.ALIKE and not window.losses
        learned = stream.gradients(begin, end, weights)[:2] if over and module.TENSORS and not alone else None
        seen, roots = stream.leaves()
        lost, scored, _, after, rows = module.losses(stream.part(begin, end), {**stream.before(begin), **seen}, weights, True)
        window.add(stream.counts[:, begin:end], lost, roots, rows)
        made = window.closed(list(seen.values()) if alone else []) if closes else []
        if alone:
            learned = dict(zip(seen, made, strict=True)), grams_by_row(rows, scored)
        if learned is not None:
            stream.learn(end, *learned, after)
        else:
            stream.begun, stream.begin = {key: after[key] for key in module.INSIDE}, end
    window.closed([])


def scored_of(labels: Tensor | None, x: Tensor, like: Tensor) -> Tensor:
    """1 where the loss of a token of x [B, T, ..] counts, else 0."""
    return torch.ones(x.shape[:2], dtype=like.dtype, device=x.device) if labels is None else (labels >= 0).to(like.dtype)


def scaled(tensors: dict[str, Tensor], scale: Tensor) -> dict[str, Tensor]:
    """Each times a number, in place."""
    return {key: x.mul_(scale) for key, x in tensors.items()}


class Window:
    """Segments between two cuts of the outer gradient, and what all of them have brought."""

    def __init__(self, module: Any, weights: dict[str, Tensor]) -> None:
        self.module, self.weights = module, weights
        self.loss = torch.zeros((), dtype=torch.float64)
        self.gradient = {name: torch.zeros_like(x) for name, x in weights.items()}
        self.grams: dict[str, Tensor] = {}
        self.losses: list[Tensor] = []
        self.leaves: list[tuple[str, Tensor]] = []

    def add(self, share: Tensor, lost: Tensor, leaves: dict[str, Tensor], rows: dict[str, Tensor]) -> None:
        """One more segment: what its tokens lose, and how much each counts [B, T]; and what tensors are multiplied with."""
        loss = (lost * share).sum()
        self.loss = self.loss + loss.detach()
        self.losses.append(loss)
        self.leaves += leaves.items()
        for key, x in outer_grams(rows, share).items():
            self.grams[key] = self.grams[key] + x if key in self.grams else x

    def closed(self, also: list[Tensor]) -> list[Tensor]:
        """The backward pass; tensors that pass gradients straight on bring those of their first values. Returns those of `also`."""
        if not self.losses:
            return []
        asked = [*self.weights.values(), *(x for _, x in self.leaves), *also]
        made = torch.autograd.grad(torch.stack(self.losses).sum(), asked, materialize_grads=True)
        for total, x in zip(self.gradient.values(), made, strict=False):
            total += x
        for (key, _), x in zip(self.leaves, made[len(self.weights) :], strict=False):
            first = self.module.STRAIGHT.get(key, self.module.UNROLLED.get(key))
            if first is not None:
                add_rows(self.gradient[first], x)
        self.losses, self.leaves = [], []
        return list(made[len(asked) - len(also) :])


def add_rows(total: Tensor, x: Tensor) -> None:
    """Add all rows of x [B, ..], or what they share, in one pass."""
    rows = x.reshape(-1, total.numel())
    total.view(-1).addmv_(rows.T, rows.new_ones(len(rows)))


def outer_grams(rows: dict[str, Tensor], share: Tensor) -> dict[str, Tensor]:
    """x x^T [I, I] of the inputs of weights, each token counted by its share."""
    found = {}
    for key, x in rows.items():
        x = x.detach().flatten(0, 1).flatten(1)
        found[key] = x.mT @ (share.reshape(-1, 1) * x)
    return found


def each_moved(
    update: Callable[..., tuple[Tensor, ...]],
    before: list[list[Tensor]],
    after: list[list[Tensor]],
    numbers: Sequence[Tensor],
    by_row: bool,
) -> None:
    """Apply a rule that is differentiated: of tensors, gradients and states `before` it makes the tensors and states `after`.

    by_row: tensors are [B, ..], each row a tensor by itself.
    """
    for given, row in zip(zip(*before, strict=True), zip(*after, strict=True), strict=True):
        given = (*given, *numbers)
        made = torch.vmap(update, in_dims=tuple(0 if x.dim() else None for x in given))(*given) if by_row else update(*given)
        for old, new in zip((row[0], *row[len(row) - len(made) + 1 :]), made, strict=True):
            old.copy_(new)


def each_row(update: Callable[..., None], columns: list[list[Tensor]], numbers: Sequence[Tensor]) -> None:
    """Apply a rule in place to tensors [B, ..], each row as a tensor by itself; numbers are [] or [B]."""
    for row in zip(*columns, strict=True):
        given = (*row, *numbers)

        def run(*tensors: Tensor) -> Tensor:
            update(*tensors)
            return tensors[0]

        torch.vmap(run, in_dims=tuple(0 if x.dim() else None for x in given))(*given)


def summed_rows(total: Callable[..., Any], columns: list[list[Tensor]], numbers: Sequence[Tensor]) -> list[Tensor]:
    """For each row, sums over all tensors of what a function makes of each of them: [B]."""
    parts = []
    for row in zip(*columns, strict=True):
        given = (*row, *numbers)
        parts.append(torch.vmap(total, in_dims=tuple(0 if x.dim() else None for x in given))(*given))
    return [torch.stack(part).sum(0) for part in zip(*parts, strict=True)]
