"""The meaning of learners of the loss that begin anew with each sequence of packed rows: every sequence is a stream of one row."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nlc.graph.segments import COUNT, PENDING, POSITION, START
from nlc.graph.sequences import document, documents
from nlc.reference.segments import Stream, Tensors

if TYPE_CHECKING:
    from nlc.reference.interpreter import Reference


def run(machine: Reference, inputs: Mapping[str, Tensor], state: Mapping[str, Tensor], frozen: Collection[str]) -> tuple[Tensors, Tensors]:
    """Outputs [B, T, ..], and the state: that of the last sequence of each row."""
    of = str(document(machine.graph))
    contexts = {item.key for item in machine.states if item.kind == "context"}
    rows, states = [], []
    for row in range(len(inputs[of])):
        mine = {name: x[row : row + 1] for name, x in inputs.items()}
        now, made = _row(state, row, contexts), []
        for begin, end in _spans(mine[of][0]):
            if begin or mine[of][0, 0] != state[documents(machine.graph)[of]][row]:
                now = _row(machine.initial_state(1), 0, contexts)
            outputs, now = Stream(machine, _part(machine, mine, begin, end), now, frozen).run()
            made.append(outputs)
        rows.append({name: torch.cat([part[name] for part in made], 1) for name in made[0]})
        states.append(now)
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}, _joined(states)


def _spans(numbers: Tensor) -> Iterator[tuple[int, int]]:
    """Where the sequences of a row begin and end."""
    starts = [0, *(t for t in range(1, len(numbers)) if numbers[t] != numbers[t - 1])]
    yield from zip(starts, [*starts[1:], len(numbers)], strict=True)


def _part(machine: Reference, row: Tensors, begin: int, end: int) -> Tensors:
    """The inputs of a sequence; if the row holds another behind it, its last token has no label."""
    part, asked = {name: x[:, begin:end] for name, x in row.items()}, [f.args[0] for f in machine.graph.flows.values() if f.op == "next"]
    if asked and end < next(iter(row.values())).shape[1]:
        labels = part["targets"] if "targets" in part else row[asked[0]][:, begin + 1 : end + 1]
        part["targets"] = torch.cat([labels[:, :-1], torch.full_like(labels[:, -1:], -1)], 1)
    return part


def _row(state: Mapping[str, Tensor], row: int, contexts: Collection[str]) -> Tensors:
    """The state of one row, as a stream has it."""
    count, position = int(state[COUNT][row]), int(state[POSITION][row])
    mine = {key: x[row : row + 1] for key, x in state.items() if key not in (COUNT, POSITION)}
    for key, x in mine.items():
        if key.startswith(PENDING):
            mine[key] = x[:, :count]
        elif key.removeprefix(START) in contexts:  # not the zeros before it
            mine[key] = x[:, max(x.shape[1] - position - (0 if key.startswith(START) else count), 0) :]
    return {**mine, POSITION: state[POSITION][row]}


def _joined(states: list[Tensors]) -> Tensors:
    """Rows of different lengths: zeros behind what is pending, and before the samples of a context, which a start hides."""
    pending = [next(x.shape[1] for key, x in state.items() if key.startswith(PENDING) and key != POSITION) for state in states]
    found = {POSITION: torch.stack([state[POSITION] for state in states]), COUNT: torch.tensor(pending)}
    for key in states[0]:
        if key != POSITION:
            parts = [state[key] for state in states]
            longest = max(x.shape[1] if x.dim() > 1 else 0 for x in parts)
            fills = [x.new_zeros(1, longest - x.shape[1], *x.shape[2:]) if x.dim() > 1 else x[:0] for x in parts]
            both = [(x, fill) if key.startswith(PENDING) else (fill, x) for x, fill in zip(parts, fills, strict=True)]
            found[key] = torch.cat([torch.cat(pair, 1) if pair[0].dim() > 1 else torch.cat(pair) for pair in both])
    return found
