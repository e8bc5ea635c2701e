"""Checkpoints of others: safetensors files with names, shapes and a config. Nothing is unpickled; a tensor is read when it is asked for.

weights.safetensors                                          one file, without a config
FOLDER/config.json, model.safetensors
FOLDER/config.json, model.safetensors.index.json, and the files that its `weight_map` names
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from nlc.diagnostics import NOWHERE, DataError
from nlc.language.wording import listed
from nlc.runtime import codes

ONE_FILE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SHOWN = 4
"""So many names a message shows."""


@dataclass(frozen=True)
class ForeignTensor:
    """What the head of a file says of a tensor; `dtype` in the words of safetensors: `F32`, `BF16`."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class ForeignWeights:
    """The tensors of a checkpoint by name, and its config; None for a file alone."""

    path: Path
    tensors: Mapping[str, ForeignTensor]
    config: Mapping[str, Any] | None

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(tensor.file for tensor in self.tensors.values()))

    def read(self, names: Mapping[str, Any] | set[str]) -> Iterator[tuple[str, Tensor]]:
        """These tensors, file by file, one after the other. Raises DataError (NLC740)."""
        for path in self.files:
            with _opened(path) as file:
                for name, tensor in self.tensors.items():
                    if tensor.file == path and name in names:
                        yield name, file.get_tensor(name)


def named(names: list[str]) -> str:
    """Some names as a list, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(f'`{name}`' for name in names[:SHOWN])}{more}"


def open_weights(path: Path) -> ForeignWeights:
    """The names and shapes of a checkpoint: a file, or a folder. Raises DataError (NLC740)."""
    if not path.exists():
        raise _problem(f"there is no `{path}`", "name a .safetensors file, or the folder of a checkpoint")
    if path.is_dir():
        files = _files_of(path)
        return ForeignWeights(path, _tensors(path, files), _config(path))
    if path.suffix in PICKLED:
        raise _pickled(path)
    return ForeignWeights(path, _tensors(path, {path: None}), None)


def _files_of(folder: Path) -> dict[Path, list[str] | None]:
    """The files of a folder, and the tensors that its index says each holds."""
    one, index = folder / ONE_FILE, folder / INDEX
    if one.is_file() and index.is_file():
        help = "name the file that is meant, or take the other one away"
        raise _problem(f"`{folder}` holds both `{ONE_FILE}` and `{INDEX}`", help)
    if one.is_file():
        return {one: None}
    if index.is_file():
        return _indexed(folder, index)
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED)
    if pickled:
        raise _pickled(folder / pickled[0])
    raise _problem(f"`{folder}` holds neither `{ONE_FILE}` nor `{INDEX}`", "name the folder that the weights were saved in")


def _indexed(folder: Path, index: Path) -> dict[Path, list[str] | None]:
    document = _json(index)
    places = document.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise _problem(f"`{index}` has no `weight_map` from tensors to files", "copy the checkpoint again")
    found: dict[str, list[str]] = {}
    for name, file in places.items():
        found.setdefault(file, []).append(name)
    for file in found:
        if Path(file).name != file or "\\" in file or file in ("", ".", ".."):
            raise _problem(f"`{index}` names the file `{file}`, which is not one of its folder", "only files beside the index are read")
        if not (folder / file).is_file():
            raise _problem(f"`{folder}` lacks the file `{file}`, which `{INDEX}` names", "copy the checkpoint again")
    return {folder / file: names for file, names in found.items()}


def _tensors(path: Path, files: Mapping[Path, list[str] | None]) -> dict[str, ForeignTensor]:
    """All tensors of these files; what an index says of a file must be what is in it."""
    found: dict[str, ForeignTensor] = {}
    for file, listed_names in files.items():
        inside = _heads(file)
        wrong = sorted({*inside} ^ {*(listed_names if listed_names is not None else inside)})
        if wrong:
            raise _problem(f"`{file}` and `{path / INDEX}` disagree about {named(wrong)}", "copy the checkpoint again")
        twice = sorted(found.keys() & inside)
        if twice:
            raise _problem(f"`{file}` and `{found[twice[0]].file}` both hold {named(twice)}", "copy the checkpoint again")
        found |= inside
    if not found:
        raise _problem(f"`{path}` holds no tensor", "name a file with weights")
    return found


def _heads(path: Path) -> dict[str, ForeignTensor]:
    with _opened(path) as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        return {name: ForeignTensor(path, tuple(part.get_shape()), str(part.get_dtype())) for name, part in parts.items()}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, whose tensors are read when they are asked for."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        text = " ".join(str(error).split())[:200]
        reason = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else text
        raise _problem(f"`{path}` cannot be read as safetensors: {reason}", "save the weights as safetensors, or copy them again") from None


def _config(folder: Path) -> Mapping[str, Any] | None:
    return _json(folder / CONFIG) if (folder / CONFIG).is_file() else None


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise _problem(f"`{path}` is no JSON document with keys", "copy the checkpoint again")
    return document


def _pickled(path: Path) -> DataError:
    help = "save the weights as safetensors (of transformers: `model.save_pretrained(folder)`), where you trust the file"
    return _problem(f"`{path}` holds pickled weights, which run code when they are read; nlc does not read {listed(PICKLED)}", help)


def _problem(message: str, help: str) -> DataError:
    return DataError([codes.NoForeignWeights(message, NOWHERE, help)])
