"""Writing files: whole or not at all, and never over what is not ours."""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from nlc.diagnostics import NOWHERE, DataError, Diagnostic

MANIFEST = "manifest.json"
"""Lists the files of an output folder; written last, so that a folder with a manifest is complete."""

Content = str | bytes


class CannotWrite(Diagnostic):
    """A file or folder that cannot be written.

    Why: its folder forbids it, a file stands where a folder is needed, or the disk is full. Nothing was written.
    Wrong:  nlc compile ops/delta_rule -o README.md
    Right:  nlc compile ops/delta_rule -o out
    """

    code = "NLC801"


class ForeignContent(Diagnostic):
    """An output folder that holds files which nlc did not write there.

    Why: an output folder is replaced as a whole; other files in it may matter to you.
    Wrong:  nlc compile ops/delta_rule -o .
    Right:  nlc compile ops/delta_rule -o out        (--force writes beside the other files)
    """

    code = "NLC802"


class FileExists(Diagnostic):
    """A file that exists, where a new one was to be written.

    Why: it may be yours.
    Wrong:  nlc new my_memory           in a folder with a my_memory.yaml
    Right:  nlc new my_memory -o other.yaml        (--force replaces the file)
    """

    code = "NLC803"


def check_new(path: Path, force: bool = False) -> None:
    """Raise DataError (NLC801, NLC803) if a new file could not be written there; for use before long work."""
    try:
        if path.is_dir():
            raise DataError([CannotWrite(f"`{path}` is a folder", NOWHERE, "name a file in it")])
        if path.exists() and not force:
            raise DataError([FileExists(f"`{path}` exists", NOWHERE, "name another file, or use --force to replace it")])
        ancestor = next(folder for folder in path.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=ancestor):
            pass
    except (OSError, ValueError) as error:
        raise _cannot_write(path, error) from None


def write_atomically(path: Path, content: Content, through: bool = False) -> None:
    """Write a file beside its place and move it there. Raises DataError (NLC801) and leaves no part of it behind.

    through: wait until it is on the disk, so that the move does not outrun the bytes.
    """
    beside: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(_bytes(content))
            if through:
                file.flush()
                os.fsync(file.fileno())
        Path(beside).chmod(0o666 & ~_umask())
        Path(beside).replace(path)
    except (OSError, ValueError) as error:
        raise _cannot_write(path, error) from None
    finally:
        if beside is not None:
            Path(beside).unlink(missing_ok=True)


def remove_unfinished(path: Path) -> None:
    """What a process left beside a file that was killed while it wrote it. Not for files that two processes write."""
    for beside in path.absolute().parent.glob(f".{glob.escape(path.name)}.????????"):
        beside.unlink(missing_ok=True)


def check_folder(folder: Path, force: bool = False) -> None:
    """Raise DataError (NLC801, NLC802) if `write_folder` could not write there; for use before long work."""
    try:
        ancestor = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if folder == ancestor and not folder.is_dir():
            raise DataError([CannotWrite(f"`{folder}` is not a folder", NOWHERE, "name a new folder")])
        foreign = list(islice(foreign_files(folder), 4)) if folder == ancestor and not force else []
        with tempfile.TemporaryFile(dir=ancestor):
            pass
    except (OSError, ValueError) as error:
        raise _cannot_write(folder, error) from None
    if foreign:
        shown = ", ".join(f"`{name}`" for name in foreign[:3]) + (", .." if len(foreign) > 3 else "")
        help = "name a new folder, or use --force to write beside them"
        raise DataError([ForeignContent(f"`{folder}` holds files that nlc did not write: {shown}", NOWHERE, help)])


def write_folder(folder: Path, files: Mapping[str, Content], force: bool = False) -> None:
    """Write files (by their path in the folder), the manifest last, and remove those an older manifest lists."""
    check_folder(folder, force)
    stale = [name for name in listed_files(folder) if name not in files]
    beside: str | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        beside = tempfile.mkdtemp(prefix=".nlc-", dir=folder)
        for name, content in files.items():
            target = Path(beside, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(_bytes(content))
        for name in sorted(files, key=lambda name: name == MANIFEST):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Path(beside, name).replace(folder / name)
        for name in stale:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from None
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)


def listed_files(folder: Path) -> list[str]:
    """The files that the manifest of an output folder lists; none where there is no manifest of ours."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        names = [entry["file"] for entry in manifest["files"]] if manifest.get("tool") == "nlc" else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return [name for name in names if isinstance(name, str) and (folder / name).resolve().is_relative_to(folder.resolve())]


def foreign_files(folder: Path) -> Iterator[str]:
    """What lies in an output folder beside what its manifest lists."""
    listed = listed_files(folder)
    ours = {MANIFEST, *listed} if listed else set()
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = str(Path(parent, name).relative_to(folder))
            if path not in ours:
                yield path


def _bytes(content: Content) -> bytes:
    return content.encode() if isinstance(content, str) else content


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cannot_write(path: Path, error: OSError | ValueError) -> DataError:
    reason = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else str(error)
    return DataError([CannotWrite(f"`{path}` cannot be written: {reason}", NOWHERE, "name a place that you may write to")])
