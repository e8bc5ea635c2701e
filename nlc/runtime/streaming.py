"""`nlc stream`: a run reads bytes or token ids, chunk by chunk, and learns as it goes.

After a chunk in which a boundary fell its state is on disk, so a stream that was killed goes on there. What was told of later chunks is
told again, with the same positions and the same numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from nlc.diagnostics import NOWHERE, DataError
from nlc.files import check_new, remove_unfinished
from nlc.runtime import codes, session_file
from nlc.runtime.byte_model import BYTES, ByteModel, byte_model
from nlc.runtime.sampling import load_run
from nlc.runtime.text import cannot_read

BLOCK = 1 << 16
NAME = "stream.safetensors"
"""The file in a folder that is given for a state."""

Record = dict[str, object]


@dataclass(frozen=True)
class Place:
    """Where a stream stands: the file that it reads, and how much of it (bytes, or ids) it has; what all its tokens have lost so far."""

    source: str = ""
    consumed: int = 0
    nats: float = 0.0
    scored: int = 0


@dataclass(frozen=True)
class Options:
    """`ids`: whole numbers are read, not bytes. `predictions`: tell the likeliest next tokens. `learn`: do levels learn? `end`: does a
    sequence end where the source does?"""

    chunk: int = 64
    ids: bool = False
    predictions: bool = False
    learn: bool = True
    end: bool = False


class Streaming:
    """A session that reads a source. `note` is what its user should be told first."""

    def __init__(self, run: Path, state: Path | None, options: Options, backend: str = "eager") -> None:
        self.compiled, self.options = load_run(run, backend), options
        self.model: ByteModel = byte_model(self.compiled.graph)
        self.path = state / NAME if state is not None and state.is_dir() else state
        self.session, self.place = self.compiled.session(), Place()
        if self.path is not None:
            check_new(self.path, force=True)
            remove_unfinished(self.path)
            self.identity = session_file.identity(self.compiled)
            if self.path.exists():
                self.session, about = session_file.read(self.path, self.compiled, self.identity)
                self.place = Place(**about)
        (self.session.thaw if options.learn else self.session.freeze)()

    @property
    def note(self) -> str | None:
        none = not self.session.levels
        return f"`{self.compiled.graph.name}` has no level that learns from the loss; only its memories go on" if none else None

    def file(self, path: Path) -> Iterator[Record]:
        """Go on in a file: where the stream stopped in it, or at its start if it last read something else."""
        source = str(path.resolve())
        if source != self.place.source:
            self.place = replace(self.place, source=source, consumed=0)
        try:
            opened = path.open("rb")
        except (OSError, ValueError) as error:
            raise cannot_read(path, error) from None
        with opened as stream:
            yield from self._records(_tokens(stream, self.options.ids, self.place.consumed if path.is_file() else 0, path))

    def standard_input(self, stream: BinaryIO) -> Iterator[Record]:
        """Go on with what comes."""
        self.place = replace(self.place, source="", consumed=0)
        return self._records(_tokens(stream, self.options.ids, 0, None))

    def _records(self, tokens: Iterator[list[int]]) -> Iterator[Record]:
        """What is told of each chunk; chunks end at multiples of their length, wherever the stream goes on."""
        waiting: list[int] = []
        for piece in tokens:
            waiting, begin = waiting + piece, 0
            while (end := begin + self.options.chunk - self.session.position % self.options.chunk) <= len(waiting):
                yield from self._chunk(waiting[begin:end])
                begin = end
            waiting = waiting[begin:]
        if waiting:
            yield from self._chunk(waiting)
        if self.options.end:
            yield self._end()
        self._keep()

    def _end(self) -> Record:
        """What the end of the sequence made."""
        tokens = self.session.position
        self.session.end()
        return {"ended_after": tokens, "updates": self._updates()}

    def _updates(self) -> dict[str, int]:
        return {id: int(x[0]) for id, x in self.session.updates.items()}

    def _chunk(self, tokens: list[int]) -> Iterator[Record]:
        self._check(tokens)
        began, before = time.perf_counter(), self.session.boundary
        outputs, losses = self.session.feed({self.model.tokens: torch.tensor([tokens])})
        lost, scored = float(losses.double().sum()), losses.numel()
        place = self.place
        consumed = place.consumed + len(tokens)
        self.place = replace(place, consumed=consumed, nats=place.nats + lost, scored=place.scored + scored)
        unit = "bits_per_token" if self.options.ids else "bits_per_byte"
        yield {
            "position": self.session.position,
            "tokens": len(tokens),
            unit: lost / scored / math.log(2) if scored else None,
            "tokens_per_second": round(len(tokens) / (time.perf_counter() - began), 1),
            "updates": self._updates(),
            **({"predictions": self._predicted(outputs[self.model.scores][0])} if self.options.predictions else {}),
        }
        if self.session.boundary != before:
            self._keep()

    def _predicted(self, scores_TV: Tensor) -> str | list[int]:
        """The likeliest token after each; bytes as ASCII, others escaped."""
        found: list[int] = scores_TV[:, : None if self.options.ids else BYTES].argmax(1).tolist()
        return found if self.options.ids else escaped(bytes(found))

    def _check(self, tokens: list[int]) -> None:
        """Raises DataError (NLC712, NLC753) for what is outside the vocabulary."""
        low, high, last = min(tokens), max(tokens), self.model.vocabulary - 1
        if low >= 0 and high <= last:
            return
        if self.options.ids:
            text = f"the token {low if low < 0 else high} is outside the vocabulary, 0 to {last}"
            raise DataError([codes.BadTokens(text, NOWHERE)])
        text = f"the text has the byte {high}; the model's vocabulary ends at {last}"
        raise DataError([codes.ByteOutsideVocabulary(text, NOWHERE, "a vocabulary of 256 holds every byte")])

    def _keep(self) -> None:
        if self.path is not None:
            session_file.write(self.path, self.session, self.identity, asdict(self.place))


def escaped(data: bytes) -> str:
    r"""Bytes as ASCII: a backslash doubled, what is not ASCII as `\xff`, so that any bytes can be written and read back."""
    return data.replace(b"\\", b"\\\\").decode("ascii", "backslashreplace")


def _tokens(stream: BinaryIO, ids: bool, consumed: int, path: Path | None) -> Iterator[list[int]]:
    """Tokens as they come, from behind those that were read before. Raises DataError (NLC754) where there are fewer."""
    for piece in _ids(stream) if ids else _bytes(stream):
        skipped = min(consumed, len(piece))
        consumed -= skipped
        yield piece[skipped:]
    if consumed:
        text = f"`{path}` has {consumed} tokens fewer than the stream has read of it"
        raise DataError([codes.OtherText(text, NOWHERE, "`< FILE` reads it as something new")])


def _bytes(stream: BinaryIO) -> Iterator[list[int]]:
    while data := _some(stream):
        yield [*data]


def _some(stream: BinaryIO) -> bytes:
    """What there is, at least one byte unless it ends: nobody waits for a whole block."""
    read1 = getattr(stream, "read1", stream.read)
    data: bytes = read1(BLOCK)
    return data


def _ids(stream: BinaryIO) -> Iterator[list[int]]:
    """Whole numbers with white space between them; the last word of a block may go on in the next."""
    rest = b""
    while data := _some(stream):
        words = (rest + data).split()
        rest = words.pop() if words and not data[-1:].isspace() else b""
        yield [_number(word) for word in words]
    yield [_number(word) for word in [rest] if word]


def _number(word: bytes) -> int:
    if not word.removeprefix(b"-").isdigit() or len(word) > 18:
        text = f"`{escaped(word[:32])}` is no token id"
        raise DataError([codes.BadTokens(text, NOWHERE, "without `--ids` the input is read as bytes")])
    return int(word)
