"""Sessions: streams that are learned from while they are served. Thousands share the weights of one compiled spec.

A session holds what its stream has become, and nothing of the weights. Its tensors are never changed, only replaced, so a fork or a
snapshot costs nothing until the streams part.

Axes: B rows, T tokens, V entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nlc.diagnostics import DataError, Diagnostic, UsageError
from nlc.graph.segments import PENDING, START, UNKNOWN, is_apart
from nlc.language.wording import did_you_mean
from nlc.runtime import codes
from nlc.runtime.byte_model import byte_model
from nlc.runtime.compiled import CompiledSpec, rows_of
from nlc.runtime.served import ServedLevel

Tensors = dict[str, Tensor]
Tokens = Mapping[str, Tensor] | Tensor | bytes | str


@dataclass(frozen=True)
class Snapshot:
    """All of a session at one moment.

    position: tokens seen of the sequence. scores_BV: of the last token, whose label has not come. updates: [B] of each level. frozen:
    levels that do not learn. gathered: for each period, the losses since it began, added, and how many they are, [B, 2]. surprise: the
    mean loss [B] of the last period that ended.
    """

    compiled: CompiledSpec
    state: Tensors
    position: int
    scores_BV: Tensor | None
    updates: Mapping[str, Tensor]
    frozen: frozenset[str]
    gathered: Mapping[int, Tensor]
    surprise: Mapping[int, Tensor]


@dataclass(frozen=True)
class LevelStatistics:
    """What a level has done, for each row: [B].

    change: the norm of what separates its tensors from their first states, to which `reset` goes back; `relative` to the norm of these.
    surprise: the mean loss of the last period of the level that ended, NaN before.
    """

    updates: Tensor
    change: Tensor
    relative: Tensor
    surprise: Tensor


@dataclass(frozen=True)
class StateBytes:
    """What a session keeps, in bytes: in all, and for each row, there by level; `memories` are the states within a segment, `boundary` what
    is kept to run the tokens since the last boundary again."""

    total: int
    per_row: int
    levels: Mapping[str, int]
    memories: int
    boundary: int


class Session:
    """A stream of `rows` rows. Made by `compiled.session()`."""

    def __init__(self, now: Snapshot) -> None:
        self._now = now

    @property
    def compiled(self) -> CompiledSpec:
        return self._now.compiled

    @property
    def state(self) -> Tensors:
        """As `compiled(inputs, state)` takes it."""
        return dict(self._now.state)

    @property
    def position(self) -> int:
        """The tokens seen of the sequence."""
        return self._now.position

    @property
    def boundary(self) -> int:
        """The tokens before the last boundary: those that no update will see any more."""
        clock = self.compiled.served.clock
        return int(self._now.state[clock]) if clock is not None else self.position

    @property
    def rows(self) -> int:
        return rows_of(self.compiled.served.items, self._now.state)

    @property
    def levels(self) -> tuple[str, ...]:
        """The learners that minimise the loss while tokens come."""
        return tuple(self.compiled.served.levels)

    @property
    def frozen(self) -> frozenset[str]:
        return self._now.frozen

    @property
    def updates(self) -> Mapping[str, Tensor]:
        """Those that each level has made, for each row."""
        return self._now.updates

    # -- going on -------------------------------------------------------------------------------------------------------

    def feed(self, tokens: Tokens) -> tuple[Tensors, Tensor]:
        """outputs, losses = session.feed(tokens): outputs [B, T, *axes] of the tokens, losses [B, n] of those whose labels are known now.

        tokens: inputs as `compiled` takes them, or for a spec with one input a tensor [B, T] or [T], or bytes for a byte model. Without
        `targets` the label is the next token, so losses are those of the token before these and of all of these but the last; NaN where
        a target is below 0. Empty where the loss of the spec is not `cross_entropy(output, next(input))`.
        """
        inputs, now = self._inputs(tokens), self._now
        served = self.compiled.served
        frozen = [key for id in sorted(now.frozen) for key in served.levels[id].keys]
        with torch.no_grad():
            outputs, state = self.compiled(inputs, now.state, frozen)
            outputs, state = ({name: x.detach() for name, x in each.items()} for each in (outputs, state))
            losses, scores = self._losses(inputs, outputs)
            begin = now.position - (now.scores_BV is not None)
            gathered, surprise = _surprise(now, losses, begin)
        before, length = self.boundary, next(iter(inputs.values())).shape[1]
        now = replace(now, state=state, position=now.position + length, scores_BV=scores, gathered=gathered, surprise=surprise)
        self._now = now
        done = {id: self.boundary // level.period - before // level.period for id, level in served.levels.items() if id not in now.frozen}
        self._now = replace(now, updates={id: x + done.get(id, 0) for id, x in now.updates.items()})
        return outputs, losses

    def end(self) -> None:
        """The sequence is over; the next begins. As `compiled.end`: levels that go on flush or drop the period that is open.

        `position` counts from here. Raises DataError (NLC755).
        """
        now, served = self._now, self.compiled.served
        state = self.compiled.end(now.state, [key for id in sorted(now.frozen) for key in served.levels[id].keys])
        done = {id: self._last_updates(level) for id, level in served.levels.items() if id not in now.frozen}
        updates = {id: x + done.get(id, 0) for id, x in now.updates.items()}
        gathered = {n: torch.zeros_like(x) for n, x in now.gathered.items()}
        state = {key: x.detach() for key, x in state.items()}
        self._now = replace(now, state=state, position=0, scores_BV=None, updates=updates, gathered=gathered)

    def _last_updates(self, level: ServedLevel) -> int:
        """Those that the end of the sequence makes: at a boundary that waits for a label, and of an open period that is flushed."""
        waits = self.position > self.boundary and self.position % level.period == 0
        return int(waits) + int(level.flushes and self.position % level.period > 0)

    def _inputs(self, tokens: Tokens) -> Tensors:
        """As `compiled` takes them; checked there."""
        if isinstance(tokens, Mapping):
            return dict(tokens)
        if isinstance(tokens, str | bytes):
            return byte_model(self.compiled.graph).prompt(tokens.encode() if isinstance(tokens, str) else tokens)
        names = self.compiled.graph.inputs
        if len(names) != 1:
            text = f"a tensor is given for {len(names)} inputs, {', '.join(f'`{name}`' for name in names)}"
            raise self._error(codes.BadInput(text, self.compiled.graph.span, "give a dict of tensors"))
        axes = len(self.compiled.graph.flows[names[0]].axes)
        return {names[0]: tokens.unsqueeze(0) if tokens.dim() == 1 + axes else tokens}

    def _losses(self, inputs: Tensors, outputs: Tensors) -> tuple[Tensor, Tensor | None]:
        """Of the tokens whose labels are known; and the scores of the last token, where its label is not."""
        served, last = self.compiled.served, self._now.scores_BV
        if served.asked is None or served.scores is None:
            return next(iter(outputs.values())).new_zeros(self.rows, 0), None
        x, scores = inputs[served.asked].long(), outputs[served.scores]
        labels = torch.cat([x[:, 1:], torch.full_like(x[:, :1], UNKNOWN)], 1)
        given = inputs.get("targets")
        labels = labels if given is None else torch.where(given == UNKNOWN, labels, given.long())
        if last is not None:
            labels, scores = torch.cat([x[:, :1], labels], 1), torch.cat([last.unsqueeze(1).to(scores.dtype), scores], 1)
        known = labels.shape[1] - int((labels[:, -1] == UNKNOWN).any())
        waiting = scores[:, -1].clone() if known < labels.shape[1] else None
        labels, scores = labels[:, :known], scores[:, :known]
        losses = F.cross_entropy(scores.flatten(0, 1), labels.clamp(min=0).flatten(), reduction="none").view(labels.shape)
        return losses.masked_fill(labels < 0, torch.nan), waiting

    # -- going back, and beside -----------------------------------------------------------------------------------------

    def fork(self) -> Session:
        """Another session that goes on from here by itself."""
        return Session(self._now)

    def snapshot(self) -> Snapshot:
        """What `roll_back` takes."""
        return self._now

    def roll_back(self, snapshot: Snapshot) -> None:
        """Be again what the session, or another of the same compiled spec, was. Raises DataError (NLC751)."""
        if snapshot.compiled is not self.compiled:
            name, mine = snapshot.compiled.graph.name, self.compiled.graph.name
            text = f"a snapshot of a session of `{name}` is no snapshot of this `{mine}`, compiled by itself"
            raise self._error(codes.OtherModel(text, self.compiled.graph.span, "take snapshots of sessions of one compiled spec"))
        self._now = snapshot

    # -- levels ---------------------------------------------------------------------------------------------------------

    def reset(self, *levels: str) -> None:
        """Levels (all, if none is named) begin anew: tensors, what they have gathered, and states of their rules. Their ages go on."""
        first = self.compiled.initial_state(self.rows)
        keys = [key for id in self._named(levels) for key in self.compiled.served.levels[id].keys]
        self._now = replace(self._now, state={**self._now.state, **{key: first[key].detach() for key in keys}})

    def freeze(self, *levels: str) -> None:
        """What levels (all, if none is named) hold stays as it is, whatever falls due; all others go on as if their rates were zero."""
        self._now = replace(self._now, frozen=self._now.frozen | {*self._named(levels)})

    def thaw(self, *levels: str) -> None:
        """Levels (all, if none is named) learn again, from what they had gathered before and the segments that end from now on."""
        self._now = replace(self._now, frozen=self._now.frozen - {*self._named(levels)})

    def statistics(self) -> dict[str, LevelStatistics]:
        """What each level has done."""
        first, served, unknown = self.compiled.initial_state(1), self.compiled.served, torch.full((self.rows,), torch.nan)
        found = {}
        for id, level in served.levels.items():
            change = _norm([self._by_row(key, self._now.state[key] - first[key].detach()) for key in level.tensors])
            begun = _norm([self._by_row(key, first[key].detach()) for key in level.tensors])
            surprise = self._now.surprise.get(level.period, unknown)
            found[id] = LevelStatistics(self._now.updates[id], change, change / begun, surprise)
        return found

    def state_bytes(self) -> StateBytes:
        """What the session keeps; the weights are shared and not counted."""
        sizes = {key: x.numel() * x.element_size() for key, x in self._now.state.items()}
        levels = {id: sum(sizes[key] for key in level.keys) // self.rows for id, level in self.compiled.served.levels.items()}
        total = sum(sizes.values())
        boundary = sum(size for key, size in sizes.items() if key.startswith((PENDING, START))) // self.rows
        return StateBytes(total, total // self.rows, levels, total // self.rows - boundary - sum(levels.values()), boundary)

    def _by_row(self, key: str, x: Tensor) -> Tensor:
        return x.flatten().unsqueeze(0) if self.compiled.served.items[key].shared else x.flatten(1)

    def _named(self, levels: Sequence[str]) -> Sequence[str]:
        """Raises DataError (NLC750) for what is no level."""
        for id in levels:
            if id not in self.levels:
                help = did_you_mean(id, self.levels) or (f"it has: {', '.join(self.levels)}" if self.levels else "it has none")
                text = f"`{self.compiled.graph.name}` has no level `{id}` that learns from the loss while tokens come"
                raise self._error(codes.UnknownLevel(text, self.compiled.graph.span, help))
        return levels or self.levels

    def _error(self, problem: Diagnostic) -> DataError:
        return DataError([problem], dict(self.compiled.graph.sources))

    # -- many sessions --------------------------------------------------------------------------------------------------

    @staticmethod
    def grouped(sessions: Iterable[Session]) -> list[list[Session]]:
        """Those that can be joined together."""
        groups: dict[object, list[Session]] = {}
        for session in sessions:
            groups.setdefault(session._place(), []).append(session)
        return list(groups.values())

    @staticmethod
    def joined(sessions: Sequence[Session]) -> Session:
        """One session with the rows of all, which steps them by one call. Raises DataError (NLC752) where they are not at one place."""
        first = sessions[0]
        for number, other in enumerate(sessions):
            if other._place() != first._place():
                first._refuse(other, number)
        shared = [key for key, item in first.compiled.served.items.items() if item.shared]
        if shared:
            text = f"sessions of `{first.compiled.graph.name}` cannot be joined: rows share `{shared[0]}`"
            raise first._error(codes.NotTogether(text, first.compiled.graph.span, "give them rows of one session, `batch=n`"))
        parts = [each._now for each in sessions]
        state = {key: x if first._is_one(key) else torch.cat([part.state[key] for part in parts]) for key, x in first._now.state.items()}
        return Session(
            replace(
                first._now,
                state=state,
                scores_BV=torch.cat([x for part in parts if (x := part.scores_BV) is not None])
                if first._now.scores_BV is not None
                else None,
                updates={id: torch.cat([part.updates[id] for part in parts]) for id in first._now.updates},
                gathered={n: torch.cat([part.gathered[n] for part in parts]) for n in first._now.gathered},
                surprise={n: torch.cat([part.surprise[n] for part in parts]) for n in first._now.surprise},
            )
        )

    def split(self, rows: Sequence[int] | None = None) -> list[Session]:
        """The sessions of a joined one: of so many rows each, of one row if nothing is said."""
        found, begin = [], 0
        for n in rows if rows is not None else [1] * self.rows:
            found.append(self._part(slice(begin, begin + n)))
            begin += n
        return found

    def _part(self, rows: slice) -> Session:
        now = self._now
        return Session(
            replace(
                now,
                state={key: x if self._is_one(key) else x[rows].clone() for key, x in now.state.items()},
                scores_BV=now.scores_BV[rows].clone() if now.scores_BV is not None else None,
                updates={id: x[rows] for id, x in now.updates.items()},
                gathered={n: x[rows] for n, x in now.gathered.items()},
                surprise={n: x[rows] for n, x in now.surprise.items()},
            )
        )

    def _is_one(self, key: str) -> bool:
        """Has a state no rows?"""
        item = self.compiled.served.items[key]
        return item.shared or item.kind == "position"

    def _place(self) -> object:
        """Equal for sessions that one call can step."""
        now, items = self._now, self.compiled.served.items
        clocks = tuple(int(x) for key, x in now.state.items() if items[key].kind == "position")
        shapes = tuple((x.dtype, *x.shape[1:]) for key, x in now.state.items())
        return id(self.compiled), now.position, clocks, shapes, now.frozen, now.scores_BV is None

    def _refuse(self, other: Session, number: int) -> None:
        same = other.compiled is self.compiled
        place = f"at token {self.position} with the last boundary at {self.boundary}"
        its = f"at token {other.position} with the last boundary at {other.boundary}"
        differs = (
            "is of another compiled spec" if not same else f"is {its}, session 0 {place}" if its != place else "has other frozen levels"
        )
        problem = codes.NotTogether(
            f"session {number} {differs}", self.compiled.graph.span, "`Session.grouped` brings together those that can be joined"
        )
        raise self._error(problem)


def begun(compiled: CompiledSpec, state: Tensors | None, batch: int) -> Session:
    """A session from a state, or a new one of `batch` rows. Raises DataError (NLC702) for a state of another spec.

    Raises UsageError where the sequences of a row have clocks of their own.
    """
    if is_apart(compiled.graph):
        text = f"the levels of `{compiled.graph.name}` begin anew with each of several sequences of a row; a session is one"
        raise UsageError(f"{text}: call `compiled(inputs, state)`, or leave `sequence:` out")
    if state is None:
        state = compiled.initial_state(batch)
    else:
        batch = rows_of(compiled.served.items, state)
        compiled.check_state(state, batch)
    state = {key: x.detach() for key, x in state.items()}
    served = compiled.served
    pending = next((x.shape[1] for key, x in state.items() if key.startswith(PENDING) and x.dim() > 1), 0)
    position = (int(state[served.clock]) if served.clock is not None else 0) + pending
    updates = {id: torch.zeros(batch, dtype=torch.int64) for id in served.levels}
    periods = {level.period for level in served.levels.values()}
    gathered = {n: torch.zeros(batch, 2, dtype=torch.float64) for n in periods}
    surprise = {n: torch.full((batch,), torch.nan, dtype=torch.float64) for n in periods}
    return Session(Snapshot(compiled, state, position, None, updates, frozenset(), gathered, surprise))


def _norm(parts: Sequence[Tensor]) -> Tensor:
    """Of each row, over several tensors [B, n]."""
    return torch.stack([x.square().sum(1) for x in parts]).sum(0).sqrt()


def _surprise(now: Snapshot, losses: Tensor, begin: int) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """With the losses [B, n] of the tokens from `begin` on: what is gathered in each open period, the mean of each last one that ended."""
    gathered, surprise = dict(now.gathered), dict(now.surprise)
    known = torch.stack([losses.nan_to_num(0.0).double(), (~losses.isnan()).double()], 2).cpu()
    for period in gathered:
        end = (begin + losses.shape[1]) // period * period
        if end > begin:
            first = max(end - period, begin)
            ended = known[:, first - begin : end - begin].sum(1) + (gathered[period] if first == begin else 0)
            surprise[period] = ended[:, 0] / ended[:, 1]
            gathered[period] = known[:, end - begin :].sum(1)
        else:
            gathered[period] = gathered[period] + known.sum(1)
    return gathered, surprise
