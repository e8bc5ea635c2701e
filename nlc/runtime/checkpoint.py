"""Checkpoints of a run: written beside and renamed, so that a run always has a whole one.

    RUN/config.json                        what the run is: the spec and its text, dims, params, settings
    RUN/metrics.jsonl                      one line for each logged step
    RUN/checkpoints/00000200/tensors.safetensors, checkpoint.json
    RUN/LATEST                             the name of the newest checkpoint, renamed into place last

Nothing is pickled; reading a checkpoint runs no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from nlc.diagnostics import NOWHERE, DataError, Diagnostic
from nlc.files import CannotWrite, write_atomically
from nlc.runtime import codes

FORMAT = "nlc-checkpoint"
VERSION = 1
KEPT = 2
"""So many of the newest checkpoints stay."""

LATEST = "LATEST"
FOLDER = "checkpoints"
TENSORS, META = "tensors.safetensors", "checkpoint.json"
PARAMETER, OPTIMIZER = "parameter:", "optimizer:"


@dataclass(frozen=True)
class Checkpoint:
    """Everything that training needs to go on. `spec` is the hash of the graph; `seconds` were spent training."""

    step: int
    spec: str
    parameters: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    seconds: float = 0.0
    settings: Mapping[str, Any] | None = None
    versions: Mapping[str, str] | None = None


def save(run: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and make it the latest. Raises DataError (NLC801); the latest one before stays whole."""
    tensors = {f"{PARAMETER}{name}": x for name, x in checkpoint.parameters.items()}
    tensors |= {f"{OPTIMIZER}{name}": x for name, x in checkpoint.optimizer.items()}
    data = save_tensors({name: x.detach().cpu().contiguous() for name, x in tensors.items()}, {"format": FORMAT})
    about = asdict(Checkpoint(checkpoint.step, checkpoint.spec, {}, {}, checkpoint.seconds, checkpoint.settings, checkpoint.versions))
    meta = {
        "format": FORMAT,
        "version": VERSION,
        **{key: about[key] for key in ("step", "spec", "seconds", "settings", "versions")},
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    name = f"{checkpoint.step:08d}"
    final, beside = run / FOLDER / name, run / FOLDER / f".{name}.{os.getpid()}"
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        _write_through(beside / TENSORS, data)
        _write_through(beside / META, (json.dumps(meta, indent=2) + "\n").encode())
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise DataError([CannotWrite(f"`{final}` cannot be written: {reason}", NOWHERE, "the checkpoint before it is whole")]) from None
    write_atomically(run / LATEST, f"{name}\n")
    for old in _names(run)[:-KEPT]:
        shutil.rmtree(run / FOLDER / old, ignore_errors=True)
    return final


def load(run: Path, spec: str | None = None) -> Checkpoint:
    """The latest checkpoint of a run; with `spec`, only one of that hash.

    Raises DataError: no checkpoint (NLC720), damaged (NLC722), written by something else (NLC723), of another spec (NLC724).
    """
    folder = run / FOLDER / latest(run)
    meta = _meta(folder)
    data = _read(folder / TENSORS)
    if len(data) != meta["bytes"]:
        raise _corrupt(folder / TENSORS, f"has {len(data)} bytes, {meta['bytes']} were written")
    if hashlib.sha256(data).hexdigest() != meta["sha256"]:
        raise _corrupt(folder / TENSORS, "is not what was written (its sum differs)")
    if spec is not None and meta["spec"] != spec:
        help = "use the spec, dims and params of the run (its config.json), or start a new run"
        raise _problem(codes.OtherSpec(f"`{folder}` is a checkpoint of another spec", NOWHERE, help))
    try:
        tensors = load_tensors(data)
    except SafetensorError as error:
        raise _corrupt(folder / TENSORS, f"is not readable: {error}") from None
    parameters = {name.removeprefix(PARAMETER): x for name, x in tensors.items() if name.startswith(PARAMETER)}
    optimizer = {name.removeprefix(OPTIMIZER): x for name, x in tensors.items() if name.startswith(OPTIMIZER)}
    return Checkpoint(meta["step"], meta["spec"], parameters, optimizer, meta["seconds"], meta["settings"], meta["versions"])


def load_parameters(module: nn.Module, run: Path, spec: str, held: Mapping[str, str] | None = None) -> int:
    """Give a module the parameters of the latest checkpoint of a run; the step they are of. Raises DataError like `load`.

    held: for some parameters the key of a state to take instead, such as an average of them.
    """
    saved = load(run, spec)
    check_names(saved, dict(module.named_parameters()), saved.optimizer, run)
    lacking = next((key for key in (held or {}).values() if key not in saved.optimizer), None)
    if lacking is not None:
        help = "`nlc train SPEC -o NEW --from RUN` begins with its weights and makes one"
        raise _problem(codes.NoRun(f"the run `{run}` was not trained: it has no state `{lacking}`", NOWHERE, help))
    module.load_state_dict({**saved.parameters, **{name: saved.optimizer[key] for name, key in (held or {}).items()}})
    return saved.step


def latest(run: Path) -> str:
    """The name of the newest checkpoint. Raises DataError (NLC720, NLC722)."""
    if not run.is_dir():
        raise _problem(codes.NoRun(f"there is no run `{run}`", NOWHERE, "`nlc train SPEC -o RUN` makes one"))
    if not (run / LATEST).is_file():
        raise _problem(codes.NoRun(f"the folder `{run}` holds no checkpoint", NOWHERE, "name the folder given to `nlc train -o`"))
    name = _read(run / LATEST).decode("ascii", "replace").strip()
    if not name.isdigit() or not (run / FOLDER / name).is_dir():
        others = ", ".join(_names(run)) or "none"
        raise _corrupt(run / LATEST, f"names no checkpoint of this run; there are: {others}")
    return name


def check_names(checkpoint: Checkpoint, parameters: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], run: Path) -> None:
    """Raise DataError (NLC722) if the tensors are not those that a spec has, name by name and shape by shape."""
    for kind, found, wanted in (("parameter", checkpoint.parameters, parameters), ("state", checkpoint.optimizer, optimizer)):
        for name in sorted({*found, *wanted}):
            if name not in found:
                raise _corrupt(run, f"lacks the {kind} `{name}`")
            if name not in wanted:
                raise _corrupt(run, f"has the {kind} `{name}`, which the spec does not have")
            if found[name].shape != wanted[name].shape or found[name].dtype != wanted[name].dtype:
                shapes = f"{list(found[name].shape)} {found[name].dtype}, not {list(wanted[name].shape)} {wanted[name].dtype}"
                raise _corrupt(run, f"has the {kind} `{name}` of {shapes}")


def _names(run: Path) -> list[str]:
    try:
        return sorted(path.name for path in (run / FOLDER).iterdir() if path.name.isdigit())
    except OSError:
        return []


_KEYS: dict[str, type | tuple[type, ...]] = {
    "step": int,
    "spec": str,
    "seconds": (int, float),
    "bytes": int,
    "sha256": str,
    "settings": dict,
    "versions": dict,
}


def _meta(folder: Path) -> dict[str, Any]:
    try:
        meta = json.loads(_read(folder / META))
    except (ValueError, RecursionError):
        raise _corrupt(folder / META, "is no JSON") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise _problem(codes.ForeignCheckpoint(f"`{folder}` was not written by nlc", NOWHERE, "name a folder given to `nlc train -o`"))
    if meta.get("version") != VERSION:
        message = f"`{folder}` has version {meta.get('version')!r} of the format; this nlc reads version {VERSION}"
        raise _problem(codes.ForeignCheckpoint(message, NOWHERE, "use the nlc that wrote it"))
    for key, kind in _KEYS.items():
        if not isinstance(meta.get(key), kind):
            raise _corrupt(folder / META, f"has no valid `{key}`")
    return meta


def _write_through(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk: a rename must not outrun the bytes."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise _corrupt(path, f"cannot be read: {reason}") from None


def _corrupt(path: Path, what: str) -> DataError:
    help = f"write the name of an older checkpoint into `{LATEST}`, copy the run again, or start a new one"
    return _problem(codes.CorruptCheckpoint(f"`{path}` {what}", NOWHERE, help))


def _problem(diagnostic: Diagnostic) -> DataError:
    return DataError([diagnostic])
