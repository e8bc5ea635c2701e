"""Where names of other specs come from: the folder of the file itself, a search path, and the spec library."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from nlc import specs
from nlc.diagnostics import DataError, Diagnostic, Span, SpecError
from nlc.language.conversion import spec_from_text
from nlc.language.files import MissingFile, read_text, shown_path
from nlc.language.spec import Spec
from nlc.language.wording import did_you_mean, quoted

MAX_CHAIN = 16
MAPS = "maps"
"""The folder of name maps, which are no specs."""
SUFFIX = ".yaml"


class UnknownFile(Diagnostic):
    """A name in `uses` for which there is no file.

    Why: the spec cannot be understood without it.
    Wrong:  uses: {block: blocks/gated_detla}
    Right:  uses: {block: blocks/gated_delta}
    """

    code = "NLC130"


class OutsideSearchPath(Diagnostic):
    """A file outside the folders that specs are taken from.

    Why: reading a spec must not read other files of the machine.
    Wrong:  uses: {block: ../../secret}
    Right:  uses: {block: blocks/gated_delta}
    """

    code = "NLC131"


class RecursiveUses(Diagnostic):
    """A file that uses itself, directly or through others.

    Why: such a spec has no end.
    Wrong:  uses: {again: self_using}      (in self_using.yaml)
    Right:  uses: {block: blocks/gated_delta}
    """

    code = "NLC132"


class UsesTooDeep(Diagnostic):
    """Files that use files that use files, beyond any use.

    Why: the limit keeps generated or damaged specs from exhausting the stack.
    Wrong:  a chain of 17 files
    Right:  fewer layers of files
    """

    code = "NLC133"


Chain = tuple[tuple[Path, str], ...]
"""The files that are being loaded, outermost first, and how each was named."""


class Library:
    """Loads specs by path and by name, each once.

    `root` is the spec library, by default the one that comes with nlc; `search` are folders looked through before it.
    """

    def __init__(self, root: Path | None = None, search: tuple[Path, ...] = ()) -> None:
        self.root = (root if root is not None else Path(specs.__path__[0])).resolve()
        self.search = tuple(folder.resolve() for folder in search)
        self._loaded: dict[Path, Spec | SpecError] = {}

    def find(self, role: str, name: str) -> Spec | None:
        """The spec `<role>/<name>.yaml` of the search path or the library; None if there is none.

        `role` is `stores`, `objectives` or `optimizers`.
        """
        if not _SEGMENT.fullmatch(name):
            return None
        for folder in (*self.search, self.root):
            path = folder / role / f"{name}{SUFFIX}"
            if _is_file(path) and _real(path).is_relative_to(folder):
                return self.open(path)
        return None

    def names(self, role: str) -> tuple[str, ...]:
        """All names that `find` knows in this role, sorted."""
        return tuple(sorted({path.stem for folder in (*self.search, self.root) for path in _specs_in(folder / role)}))

    def roles(self) -> tuple[str, ...]:
        """The folders of the spec library that hold specs, sorted."""
        return tuple(folder.name for folder in _roles_in(self.root) if any(_specs_in(folder)))

    def locate_map(self, name: str | Path) -> Path:
        """The file of a name map: a path, or a name of the folder `maps` of the search path or the library. Raises DataError."""
        path = Path(name)
        if os.path.lexists(path) or path.suffix or not _SEGMENT.fullmatch(str(name)):
            return path
        for folder in (*self.search, self.root):
            found = folder / MAPS / f"{name}{SUFFIX}"
            if _is_file(found) and _real(found).is_relative_to(folder):
                return found
        help = did_you_mean(str(name), self.names(MAPS)) or f"name a file, or a map of the library: {', '.join(self.names(MAPS))}"
        raise DataError([MissingFile("there is no such name map", Span(str(name), 0, 0, 0, 0), help)])

    @property
    def opened(self) -> tuple[Path, ...]:
        """The files that were read so far, without links, in the order in which they were needed."""
        return tuple(path for path, loaded in self._loaded.items() if isinstance(loaded, Spec))

    def locate(self, name: str | Path) -> Path:
        """The file that a path, or a name of the search path or the library (`ops/delta_rule`), stands for.

        Raises DataError where there is neither; other mistakes are found when the file is opened.
        """
        path = Path(name)
        if os.path.lexists(path) or path.suffix or path.is_absolute():
            return path
        if all(_SEGMENT.fullmatch(part) for part in path.parts):
            for folder in (*self.search, self.root):
                found = folder / f"{path}{SUFFIX}"
                if _is_file(found) and _real(found).is_relative_to(folder):
                    return found
        known = self._known(str(path.parent), (self.root,))
        help = did_you_mean(str(name), known) or "name a file, or a spec of the library: `nlc list` shows them"
        raise DataError([MissingFile("there is no such file", Span(str(name), 0, 0, 0, 0), help)])

    def open(self, path: Path, chain: Chain = ()) -> Spec:
        """The spec in a file; raises SpecError, or DataError where the file cannot be read."""
        real = _real(path)
        if real not in self._loaded:
            try:
                text = read_text(path)
                self._loaded[real] = self.read(text, shown_path(path), path.parent, (*chain, (real, path.stem)))
            except SpecError as error:
                self._loaded[real] = error
        loaded = self._loaded[real]
        if isinstance(loaded, SpecError):
            raise loaded
        return loaded

    def read(self, text: str, file: str, folder: Path | None, chain: Chain = ()) -> Spec:
        """The spec in `text`, which stands in `folder`."""
        return spec_from_text(text, file, lambda target, span: self._use(target, span, folder, chain))

    def _use(self, target: str, span: Span, folder: Path | None, chain: Chain) -> Spec:
        path = self._resolve(target, span, folder)
        real = _real(path)
        opened = [place for place, _ in chain]
        if real in opened:
            circle = [name for _, name in chain[opened.index(real) :]]
            raise SpecError([RecursiveUses(f"files use each other in a circle: {' -> '.join((*circle, circle[0]))}", span)])
        if len(chain) >= MAX_CHAIN:
            raise SpecError([UsesTooDeep(f"files use each other more than {MAX_CHAIN} deep", span)])
        try:
            return self.open(path, chain)
        except SpecError as error:
            raise SpecError([problem.noted("used here", span) for problem in error.diagnostics], error.sources) from None

    def _resolve(self, target: str, span: Span, folder: Path | None) -> Path:
        """The file of a target; the first folder that has it counts."""
        if target.startswith(("/", "~")) or "\\" in target or ".." in target.split("/") or ":" in target:
            help = "name a file relative to this one, to the search path or to the library"
            raise SpecError([OutsideSearchPath(f"{quoted(target)} leads outside the search path", span, help)])
        folders = self._folders(folder)
        if all(_SEGMENT.fullmatch(segment) for segment in target.split("/")):
            for base in folders:
                path = base / f"{target}{SUFFIX}"
                if _is_file(path):
                    return self._inside(path, target, span, folders)
        raise SpecError([self._unknown(target, span, folders)])

    def _inside(self, path: Path, target: str, span: Span, folders: tuple[Path, ...]) -> Path:
        real = _real(path)
        if not any(real.is_relative_to(folder) for folder in folders):
            raise SpecError([OutsideSearchPath(f"{quoted(target)} is a link that leads outside the search path", span)])
        return path

    def _folders(self, folder: Path | None) -> tuple[Path, ...]:
        own = () if folder is None else (folder.resolve(),)
        return (*own, *self.search, self.root)

    def _unknown(self, target: str, span: Span, folders: tuple[Path, ...]) -> Diagnostic:
        known = self._known(target.rpartition("/")[0], folders)
        same_stem = next((name for name in known if name.rpartition("/")[2] == target), None)
        if target.endswith((SUFFIX, ".yml")):
            help: str | None = f"write it without `.{target.rpartition('.')[2]}`"
        else:
            help = f"did you mean `{same_stem}`?" if same_stem else did_you_mean(target, known)
        return UnknownFile(f"no spec {quoted(target)} in the search path", span, help)

    def _known(self, parent: str, folders: tuple[Path, ...]) -> list[str]:
        """The targets that exist: in the same folder as the one that was asked for, and in the library."""
        known = {f"{role.name}/{path.stem}" for role in _roles_in(self.root) for path in _specs_in(role)}
        if not parent or all(_SEGMENT.fullmatch(segment) for segment in parent.split("/")):
            prefix = f"{parent}/" if parent else ""
            known.update(f"{prefix}{path.stem}" for folder in folders for path in _specs_in(folder / parent))
        return sorted(known)


_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _specs_in(folder: Path) -> Iterator[Path]:
    try:
        yield from (path for path in sorted(folder.iterdir()) if path.suffix == SUFFIX)
    except OSError:
        return


def _folders_in(folder: Path) -> Iterator[Path]:
    try:
        yield from (path for path in sorted(folder.iterdir()) if path.is_dir())
    except OSError:
        return


def _roles_in(folder: Path) -> Iterator[Path]:
    """The folders of a library that are of specs."""
    yield from (role for role in _folders_in(folder) if role.name != MAPS)


def _real(path: Path) -> Path:
    """The path without links; the path itself where it cannot be a file."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):
        return path
