"""The folder of a run: what the run is (config.json, the spec files it was made from) and how it went (metrics.jsonl)."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nlc.diagnostics import NOWHERE, DataError, SpecError
from nlc.files import CannotWrite, check_folder, write_atomically
from nlc.graph.build import build
from nlc.graph.identity import graph_hash
from nlc.graph.ir import LevelGraph
from nlc.language.library import Library
from nlc.language.load import load
from nlc.language.spec import Spec
from nlc.runtime import codes

CONFIG, METRICS, SPEC = "config.json", "metrics.jsonl", "spec"
FORMAT, VERSION = "nlc-run", 1

Record = dict[str, float]
"""One line of metrics.jsonl: `step` and what was measured there."""


@dataclass(frozen=True)
class Source:
    """A spec with the values that replace its own, and its graph before any pass.

    `meaning` is the hash of that graph: equal for specs that say the same.
    """

    spec: Spec
    library: Library
    dims: dict[str, int] = field(default_factory=dict)
    params: dict[str, float | str] = field(default_factory=dict)
    graph: LevelGraph = field(default_factory=lambda: LevelGraph(""))
    meaning: str = ""


def open_source(
    spec: str | Path | Spec,
    dims: Mapping[str, int] | None = None,
    params: Mapping[str, float | str] | None = None,
    library: Library | None = None,
) -> Source:
    """Load and build a spec. Raises SpecError, or DataError where there is no such file."""
    library = library or Library()
    loaded = spec if isinstance(spec, Spec) else load(spec, library)
    graph = build(loaded, library, dims, params)
    return Source(loaded, library, dict(dims or {}), dict(params or {}), graph, graph_hash(graph))


def versions() -> dict[str, str]:
    """What the bits of a result depend on, beside the spec and the settings."""
    import torch

    import nlc

    return {"nlc": nlc.__version__, "torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}


def check_new(run: Path) -> None:
    """Raise DataError (NLC721, NLC801) if no new run can begin there; for use before long work."""
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        help = "`--resume` goes on with a run; else name a new folder"
        raise DataError([codes.RunExists(f"`{run}` already holds files" if run.is_dir() else f"`{run}` is a file", NOWHERE, help)])
    check_folder(run)


def begin(run: Path, source: Source, about: Mapping[str, Any]) -> None:
    """Make the folder of a new run, with a copy of the spec. Raises DataError (NLC801)."""
    main = _copy_spec(run, source)
    config = {
        "format": FORMAT,
        "version": VERSION,
        "name": source.graph.name,
        "spec": source.spec.path,
        "spec_copy": main,
        "graph": source.meaning,
        "dims": source.dims,
        "params": source.params,
        **about,
    }
    write_atomically(run / CONFIG, json.dumps(config, indent=2) + "\n")
    write_atomically(run / METRICS, "")


def read_config(run: Path) -> dict[str, Any]:
    """config.json of a run. Raises DataError (NLC720, NLC722)."""
    if not (run / CONFIG).is_file():
        what = "holds no run" if run.is_dir() else "is no folder" if run.exists() else "does not exist"
        raise DataError([codes.NoRun(f"`{run}` {what}", NOWHERE, "name the folder given to `nlc train -o`")])
    try:
        config = json.loads((run / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        config = None
    if not isinstance(config, dict) or config.get("format") != FORMAT or not isinstance(config.get("settings"), dict):
        raise DataError(
            [codes.CorruptCheckpoint(f"`{run / CONFIG}` is not the config of a run", NOWHERE, "copy the run again, or start a new one")]
        )
    return config


def source_of(run: Path) -> Source:
    """The spec of a run: the copy in its folder, or the file that it was made from. Raises DataError (NLC724)."""
    config = read_config(run)
    copy = config.get("spec_copy")
    has_copy = isinstance(copy, str) and (run / SPEC / copy).resolve().is_relative_to((run / SPEC).resolve())
    path, library = (run / SPEC / str(copy), Library(run / SPEC)) if has_copy else (Path(str(config.get("spec"))), Library())
    try:
        source = open_source(path, config.get("dims"), config.get("params"), library)
    except SpecError as error:
        message = f"the spec of the run `{run}` cannot be read any more: {error.diagnostics[0].message}"
        raise DataError([codes.OtherSpec(message, NOWHERE, f"restore `{path}`")]) from None
    if source.meaning != config.get("graph"):
        raise DataError([codes.OtherSpec(f"`{path}` is no longer the spec of the run `{run}`", NOWHERE, "restore it, or train again")])
    return source


def append(run: Path, record: Record) -> None:
    """Add a line to the metrics."""
    try:
        with (run / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise DataError([CannotWrite(f"`{run / METRICS}` cannot be written: {reason}", NOWHERE)]) from None


def read_metrics(run: Path) -> list[Record]:
    """The metrics so far; a line that was cut off is left out."""
    try:
        lines = (run / METRICS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            found.append(record)
    return found


def rewind(run: Path, step: int) -> list[Record]:
    """Forget the metrics of steps that a resumed run will make again."""
    kept = [record for record in read_metrics(run) if record["step"] <= step]
    write_atomically(run / METRICS, "".join(json.dumps(record) + "\n" for record in kept))
    return kept


def _copy_spec(run: Path, source: Source) -> str | None:
    """Copy the spec and all it uses into the run; the path of the spec in the copy, None where a copy would not mean the same."""
    path = Path(os.path.realpath(source.spec.path))
    texts = {Path(os.path.realpath(name)): text for name, text in source.spec.sources.items() if Path(name).is_file()}
    texts |= {file: file.read_text(encoding="utf-8") for file in source.library.opened if file not in texts}
    names = {file: _inside(file, path.parent, source.library) for file in texts}
    main = names.get(path)
    if main is None:
        return None
    for file, text in texts.items():
        name = names[file]
        if name is not None:
            write_atomically(run / SPEC / name, text)
    try:
        copied: str | None = open_source(run / SPEC / main, source.dims, source.params, Library(run / SPEC)).meaning
    except SpecError:
        copied = None
    if copied != source.meaning:
        shutil.rmtree(run / SPEC, ignore_errors=True)
        return None
    return main


def _inside(file: Path, folder: Path, library: Library) -> str | None:
    """Where a file goes in the copy: as in the library, or as beside the spec."""
    bases: Iterable[Path] = (library.root, *library.search, folder)
    return next((str(file.relative_to(base)) for base in bases if file.is_relative_to(base)), None)
