"""Byte corpora: a text, its split into training and validation, and batches that depend only on (seed, step).

Axes: B rows of a batch, T tokens of a row, N bytes.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nlc.diagnostics import NOWHERE, DataError, Diagnostic
from nlc.runtime import codes
from nlc.runtime.random import integer

BUILTIN = "builtin"
"""The name of the text that comes with Python: the help topics of `pydoc`, about 466 kB of English."""

HELD_OUT = 10
"""One byte in so many, at the end of the text, is for validation."""


@dataclass(frozen=True)
class Corpus:
    """A text as bytes. `digest` tells whether two runs saw the same text."""

    name: str
    train_N: Tensor
    validation_N: Tensor
    digest: str

    def batch(self, seed: int, step: int, rows: int, length: int) -> dict[str, Tensor]:
        """`tokens` and `targets` [B, T], each target the byte after its token; rows begin anywhere in the training text."""
        last = len(self.train_N) - length - 1
        starts = [integer(last + 1, seed, step, row) for row in range(rows)]
        rows_BT = torch.stack([self.train_N[start : start + length + 1] for start in starts]).long()
        return {"tokens": rows_BT[:, :-1].contiguous(), "targets": rows_BT[:, 1:].contiguous()}

    def check(self, length: int, vocabulary: int) -> None:
        """Raise DataError (NLC711, NLC712) if the text cannot be used for rows of `length` bytes of that vocabulary."""
        total = len(self.train_N) + len(self.validation_N)
        if min(len(self.train_N), len(self.validation_N)) < length + 1:
            message = f"the text `{self.name}` has {total} bytes; rows of {length} bytes need {HELD_OUT * (length + 1)}"
            raise _problem(codes.TextTooShort(message, NOWHERE, "use shorter rows (`length`) or a longer text"))
        largest = int(max(self.train_N.max(), self.validation_N.max()))
        if largest >= vocabulary:
            message = f"the text `{self.name}` has the byte {largest}; the model's vocabulary ends at {vocabulary - 1}"
            raise _problem(codes.ByteOutsideVocabulary(message, NOWHERE, "a vocabulary of 256 holds every byte"))


def load_text(name: str | Path) -> Corpus:
    """The corpus `builtin`, or the bytes of a file, whatever their encoding. Raises DataError (NLC710, NLC711)."""
    data = _builtin() if str(name) == BUILTIN else _read(Path(name))
    if not data:
        raise _problem(codes.TextTooShort(f"the text `{name}` is empty", NOWHERE))
    return corpus_of(data, str(name))


def corpus_of(data: bytes, name: str) -> Corpus:
    """Splits a text; its last tenth is for validation."""
    bytes_N = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    held_out = len(data) // HELD_OUT
    split = len(data) - held_out
    return Corpus(name, bytes_N[:split], bytes_N[split:], hashlib.sha256(data).hexdigest()[:16])


def streams(bytes_N: Tensor, rows: int, length: int, limit: int) -> list[dict[str, Tensor]]:
    """The text cut into `rows` streams side by side, each in segments [B, T] that follow each other.

    At most about `limit` bytes are taken, from the start; what does not fill a segment is left out.
    """
    rows = min(rows, max(1, (len(bytes_N) - 1) // length))
    segments = max(1, min(limit, len(bytes_N) - 1) // (rows * length))
    tokens_BT = bytes_N[: rows * segments * length].long().view(rows, segments * length)
    targets_BT = bytes_N[1 : rows * segments * length + 1].long().view(rows, segments * length)
    return [
        {"tokens": tokens_BT[:, i : i + length].contiguous(), "targets": targets_BT[:, i : i + length].contiguous()}
        for i in range(0, segments * length, length)
    ]


def _builtin() -> bytes:
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics)).encode()


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise _problem(codes.NoText(f"`{path}` is a folder, not a text", NOWHERE, "name one file, or `builtin`"))
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise cannot_read(path, error, "name a file, or `builtin`") from None


def cannot_read(path: Path, error: OSError | ValueError, help: str = "name a file") -> DataError:
    """NLC710, with the reason."""
    if isinstance(error, FileNotFoundError):
        return _problem(codes.NoText(f"there is no text `{path}`", NOWHERE, help))
    reason = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else "the name is not valid"
    return _problem(codes.NoText(f"the text `{path}` cannot be read: {reason}", NOWHERE))


def _problem(diagnostic: Diagnostic) -> DataError:
    return DataError([diagnostic])
