"""A session on disk: one safetensors file, written whole or not at all; reading it runs no code.

Its metadata say which spec and which weights it is of. The tensors are those of the state, and what a session knows beside.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nlc.diagnostics import NOWHERE, DataError
from nlc.files import write_atomically
from nlc.graph.identity import graph_hash
from nlc.runtime import codes
from nlc.runtime.session import Session, Snapshot, begun

if TYPE_CHECKING:
    from nlc.runtime.compiled import CompiledSpec

FORMAT, VERSION = "nlc-session", 1
STATE, SCORES, UPDATES, GATHERED, SURPRISE = "state:", "scores", "updates:", "gathered:", "surprise:"


def identity(compiled: CompiledSpec) -> dict[str, str]:
    """Hashes of the spec and of the weights that a session learns beside."""
    digest = hashlib.sha256()
    for name, x in sorted(compiled.named_parameters()):
        digest.update(name.encode() + str(x.dtype).encode())
        digest.update(x.detach().cpu().contiguous().numpy().tobytes())
    return {"spec": graph_hash(compiled.graph), "weights": digest.hexdigest()}


def write(path: Path, session: Session, model: Mapping[str, str], about: Mapping[str, Any]) -> None:
    """Put a session in place of the one before. Raises DataError (NLC801) and leaves that one whole.

    model: its `identity`. about: what else is to be known when it goes on, as JSON.
    """
    now = session.snapshot()
    meta = {"version": VERSION, **model, "position": now.position, "frozen": sorted(now.frozen), "about": about}
    data = save(_tensors(now), {"format": FORMAT, "session": json.dumps(meta)})
    write_atomically(path, data, through=True)


def _tensors(now: Snapshot) -> dict[str, Tensor]:
    """By name, each with a memory of its own."""
    found = {f"{STATE}{key}": x for key, x in now.state.items()}
    found |= {SCORES: now.scores_BV} if now.scores_BV is not None else {}
    found |= {f"{UPDATES}{id}": x for id, x in now.updates.items()}
    found |= {f"{GATHERED}{n}": x for n, x in now.gathered.items()} | {f"{SURPRISE}{n}": x for n, x in now.surprise.items()}
    return {name: x.detach().cpu().contiguous().clone() for name, x in found.items()}


def read(path: Path, compiled: CompiledSpec, model: Mapping[str, str]) -> tuple[Session, dict[str, Any]]:
    """A session, and what was written about it.

    Raises DataError: it cannot be read (NLC722), something else wrote it (NLC723), it is of another spec or of other weights (NLC751).
    """
    try:
        data = path.read_bytes()
        tensors, meta = load(data), _metadata(data)
    except (OSError, ValueError, SafetensorError, struct.error) as error:
        help = "name another file: a stream begins anew there"
        raise DataError([codes.CorruptCheckpoint(f"`{path}` is no state of a stream that can be read: {error}", NOWHERE, help)]) from None
    if meta.get("format") != FORMAT:
        raise DataError([codes.ForeignCheckpoint(f"`{path}` was not written by `nlc stream`", NOWHERE, "name another file")])
    known = json.loads(meta["session"])
    if known["version"] != VERSION:
        raise DataError([codes.ForeignCheckpoint(f"`{path}` has version {known['version']}; this nlc reads {VERSION}", NOWHERE)])
    for word, what in (("spec", "another spec"), ("weights", "other weights of this spec")):
        if known[word] != model[word]:
            help = "name the run that it was made with, or another file to begin anew"
            raise DataError([codes.OtherModel(f"`{path}` is the state of a stream of {what}", NOWHERE, help)])
    return _session(compiled, tensors, known), known["about"]


def _metadata(data: bytes) -> dict[str, str]:
    """The strings in the head of a safetensors file: its length in 8 bytes, then JSON."""
    (length,) = struct.unpack_from("<Q", data)
    found: dict[str, str] = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    return found


def _session(compiled: CompiledSpec, tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> Session:
    device = next((p.device for p in compiled.parameters()), None)
    now = begun(compiled, {key: x.to(device) for key, x in _under(STATE, tensors).items()}, 1).snapshot()
    return Session(
        replace(
            now,
            position=known["position"],
            scores_BV=tensors[SCORES].to(device) if SCORES in tensors else None,
            updates=_under(UPDATES, tensors),
            frozen=frozenset(known["frozen"]),
            gathered={int(n): x for n, x in _under(GATHERED, tensors).items()},
            surprise={int(n): x for n, x in _under(SURPRISE, tensors).items()},
        )
    )


def _under(start: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(start): x for name, x in tensors.items() if name.startswith(start)}
