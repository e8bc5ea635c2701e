"""Quarry of generated modules whose learners of the loss begin anew with each sequence of packed rows: each is its own stream.

Those at one place of their clocks run side by side, the longest first; one that ends leaves. Axes: B rows of a call, T tokens of it, N
sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from nlc.backends.segments import UNKNOWN, Part, Stream, Values, Window, advanced, by_segments, labelled, scaled, scored_of, through_updates


class Sequences(Stream):
    """Sequences that go on side by side, in the order of their lengths.

    lengths [N], with what is pending; open [N]: its row may go on with it. places [N, tokens]: of its new tokens among the B * T of the
    call. `finished` are those that ended, with the states they ended in.
    """

    def __init__(
        self,
        module: Any,
        inputs: dict[str, Tensor],
        state: dict[str, Tensor],
        frozen: Collection[str],
        lengths: Tensor,
        open: Tensor,
        places: Tensor,
    ) -> None:
        super().__init__(module, inputs, state, frozen)
        self.lengths, self.open, self.places = lengths, open, places
        self.finished: list[Sequences] = []

    def labelled(self, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> Tensor:
        """As given for the new tokens; of the last pending one the first of them."""
        labels, x = torch.cat([state["pending:next"], inputs["targets"]], 1), self.inputs[self.module.LABEL]
        if 0 < self.known < labels.shape[1]:
            last = labels[:, self.known - 1]
            labels[:, self.known - 1] = torch.where(last == UNKNOWN, x[:, self.known], last)
        return labels

    def of(self, chosen: Tensor, tokens: int | None = None) -> Sequences:
        """Some of them, with their first tokens."""
        found = Sequences.__new__(Sequences)
        vars(found).update(vars(self))
        found.inputs = {name: x[chosen, :tokens] for name, x in self.inputs.items()}
        found.labels = self.labels[chosen, :tokens] if self.labels is not None else None
        found.counts = self.counts[chosen, :tokens] if self.counts is not None else None
        found.states, found.begun = ({key: x[chosen] for key, x in each.items()} for each in (self.states, self.begun))
        found.lengths, found.open, found.places = self.lengths[chosen], self.open[chosen], self.places[chosen]
        found.rows, found.tokens = len(found.lengths), next(iter(found.inputs.values())).shape[1]
        return found

    def walk(self) -> Iterator[Part]:
        """The segments of those that reach their ends, and of those that end within them."""
        going: Sequences = self
        begin, cut = self.begin, self.module.CUT or 0
        while going.rows:
            boundary, reach = self.boundary(begin), going.reach(self.boundary(begin))
            ending, going = (None, going) if bool(reach.all()) else (going.of(~reach), going.of(reach))
            opens, closes = (cut > 0 and (self.position + at) % cut == 0 for at in (begin, boundary))
            if ending is not None and not opens:  # gradients join both to the segments before: one backward pass
                yield from ending.last(begin, False)
            if going.rows:
                yield Part(going, begin, boundary, True, closes)
            if ending is not None and opens:
                yield from ending.last(begin, closes)
            begin = boundary

    def reach(self, boundary: int) -> Tensor:
        """Which of them are over a segment [N]: they go on behind its end, or may, and the label of its last token is known."""
        over = self.lengths > boundary
        if boundary > self.tokens:
            return over
        ends = self.open & (self.lengths == boundary)
        return over | ends if self.labels is None else over | (ends & (self.labels[:, boundary - 1] != UNKNOWN))

    def last(self, begin: int, closes: bool) -> Iterator[Part]:
        """The last tokens of sequences that end. What a row may go on with is run to its end and no further, since its states are kept."""
        for length in sorted({*self.lengths[self.open].tolist()}):
            ended = self.of(self.open & (self.lengths == length), length)
            if length > begin:
                yield Part(ended, begin, length, False, closes)
            self.finished.append(ended)
        closed = ~self.open & (self.lengths > begin)
        if bool(closed.any()):
            ended = self.of(closed)
            yield Part(ended, begin, int(ended.lengths.max()), False, closes)

    def among(self, end: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Where the `tokens` before the end stand in the call, and which of them are tokens at all: [N, tokens]."""
        ticks = torch.arange(end - tokens, end, device=self.lengths.device)
        return self.places[:, ticks - self.known], ticks < self.lengths.unsqueeze(1)


def found_in(
    module: Any, inputs: dict[str, Tensor], state: dict[str, Tensor] | None, frozen: Collection[str] = (), counts: Tensor | None = None
) -> Iterator[Sequences]:
    """The sequences of packed rows: one group for each place of the clock at which some stand; those that start here are at 0.

    Without a state all start here, and what they end with is not wanted. counts: [B, T], what else to know of each token.
    """
    of = inputs[module.DOCUMENT]
    T = of.shape[1]
    row, begin = torch.cat([torch.ones_like(of[:, :1], dtype=torch.bool), of[:, 1:] != of[:, :-1]], 1).nonzero(as_tuple=True)
    following = torch.cat([begin[1:], begin[:1]])
    end = torch.where(following == 0, T, following)
    goes_on, position, known = torch.zeros_like(row, dtype=torch.bool), torch.zeros_like(row), torch.zeros_like(row)
    if state is not None:
        goes_on = (begin == 0) & (of[:, 0] == state[module.LAST].to(of.dtype))[row]
        position, known = (torch.where(goes_on, state[key][row], 0) for key in ("pending:position", "pending:count"))
    labels = labelled(module, inputs, inputs.get("targets")) if module.LABEL is not None else None
    given = {name: x for name, x in inputs.items() if name != "targets"}
    for at, before in sorted({*zip(position.tolist(), known.tolist(), strict=True)}):
        mine = ((position == at) & (known == before)).nonzero().squeeze(1)
        mine = mine[(begin - end)[mine].argsort(stable=True)]
        length = (end - begin)[mine]
        ticks = torch.arange(int(length[0]), device=of.device)
        places = (row * T + begin)[mine].unsqueeze(1) + torch.minimum(ticks, length.unsqueeze(1) - 1)
        tokens = {name: x.flatten(0, 1)[places] for name, x in given.items()}
        if labels is not None:
            tokens["targets"] = torch.where(ticks < length.unsqueeze(1), labels.flatten()[places], -1)
        begun = first_states(module, state, row[mine], goes_on[mine], given, before)
        begun["pending:position"] = torch.tensor(at)
        found = Sequences(module, tokens, begun, frozen, length + before, (end == T)[mine] & (state is not None), places)
        found.counts = torch.where(ticks < length.unsqueeze(1), counts.flatten()[places], 0) if counts is not None else None
        yield found


def first_states(
    module: Any, state: dict[str, Tensor] | None, row: Tensor, goes_on: Tensor, inputs: dict[str, Tensor], known: int
) -> dict[str, Tensor]:
    """What each sequence begins with: the state of its row where it goes on, else that of a new stream; `known` tokens are pending."""
    aside = ("pending:position", "pending:count")
    new = {key: x for key, x in module.initial_state(len(row), inputs).items() if key not in aside}
    if state is None or not bool(goes_on.any()):
        return new
    mine = {key: state[key][row, :known] if key.startswith("pending:") else state[key][row] for key in new}
    if bool(goes_on.all()):
        return mine
    pairs = {key: side_by_side_in_time(mine[key], x) for key, x in new.items()}
    return {key: torch.where(goes_on.view(-1, *(1 for _ in old.shape[1:])), old, x) for key, (old, x) in pairs.items()}


def side_by_side_in_time(*tensors: Tensor) -> tuple[Tensor, ...]:
    """States [N, ..] of which some hold samples of more tokens [N, n, ..]: zeros before the others, behind the start of a sequence."""
    longest = max(x.shape[1] if x.dim() > 1 else 0 for x in tensors)
    return tuple(
        torch.cat([x.new_zeros(x.shape[0], longest - x.shape[1], *x.shape[2:]), x], 1) if x.dim() > 1 and x.shape[1] < longest else x
        for x in tensors
    )


def streamed_apart(
    module: Any, inputs: dict[str, Tensor], state: dict[str, Tensor], losses: bool, frozen: Collection[str] = ()
) -> tuple[Values, dict[str, Tensor]]:
    """What `segments.streamed` returns, of rows that hold several sequences."""
    whole = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    with torch.inference_mode(False):
        inputs, state = ({name: x.clone() if x.is_inference() else x for name, x in each.items()} for each in (inputs, state))
        weights = {name: x if whole else x.detach() for name, x in module.named_parameters()}
        made: list[Values] = []
        places: list[Tensor] = []
        ended: list[Sequences] = []
        for sequences in found_in(module, inputs, state, frozen):
            for part in sequences.walk():
                lost, scored, values = advanced(part, weights, whole, losses)
                place, real = part.stream.among(part.end, lost.shape[1])
                made.append((lost[real], scored[real], {id: x[real] for id, x in values.items()}))
                places.append(place[real])
            ended += sequences.finished
        order, shape = torch.cat(places).argsort(), inputs[module.DOCUMENT].shape

        def rows(parts: list[Tensor]) -> Tensor:
            return torch.cat(parts)[order].unflatten(0, shape)

        values = {id: rows([each[id] for _, _, each in made]) for id in made[0][2]}
        return (rows([lost for lost, _, _ in made]), rows([scored for _, scored, _ in made]), values), ended_rows(module, ended)


def ended_rows(module: Any, ended: list[Sequences]) -> dict[str, Tensor]:
    """The state after a call, from that of the last sequence of each row."""
    states = []
    for each in ended:
        state = each.ended()
        pending = each.tokens - each.begin
        for key in module.CONTEXTS:  # no more tokens than the sequence has: not the zeros that stood before them
            for name, tokens in ((key, each.position + each.tokens), (f"start:{key}", each.position + each.begin)):
                state[name] = state[name][:, max(state[name].shape[1] - tokens, 0) :]
        counts = {"pending:position": each.position + each.begin, "pending:count": pending}
        state |= {key: each.lengths.new_full((each.rows,), n) for key, n in counts.items()}
        states.append(state)
    order = torch.cat([each.places[:, -1] for each in ended]).argsort()
    longest = max(each.tokens - each.begin for each in ended)
    found = {}
    for key in states[0]:
        parts = [state[key] for state in states]
        if key.startswith("pending:") and parts[0].dim() > 1:
            parts = [torch.cat([x, x.new_zeros(x.shape[0], longest - x.shape[1], *x.shape[2:])], 1) for x in parts]
        found[key] = torch.cat(side_by_side_in_time(*parts))[order]
    return found


def trained_apart(
    module: Any, inputs: dict[str, Tensor], shares: Callable[[Tensor], Tensor]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """What `segments.trained` returns, of rows that hold several sequences."""
    weights = dict(module.named_parameters())
    labels = labelled(module, inputs, inputs.get("targets")) if module.LABEL is not None else None
    counts = scored_of(labels, inputs[module.DOCUMENT], next(iter(weights.values())))
    share = shares(counts)
    counts, scale = (counts, share.max()) if module.ALIKE else (share, share.new_ones(()))
    window = Window(module, weights)
    for sequences in found_in(module, inputs, None, counts=counts):
        sequences.states |= {key: sequences.states[key].detach() for key in module.TENSORS}
        (through_updates if module.UNROLLED else by_segments)(sequences, window)
    return window.loss * scale, scaled(window.gradient, scale), scaled(window.grams, scale)
