"""A case that fails, made small: first its options, then its text, as long as it fails in the same way.

Greedy: a change that keeps the failure stays, until none does or the attempts are used up. Options move towards their plainest
values; then parts of the YAML text are dropped, sizes and the stream made smaller.
"""

from __future__ import annotations

import copy
import itertools
import re
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from nlc.diagnostics import SpecError
from tests.conformance.options import OPTIONS, Options, legal
from tests.conformance.random_specs import Case, case_of

Check = Callable[[Case, Path], None]
"""Raises where the case fails; files of the case may be written to the folder."""
Tree = Any
"""What YAML holds: maps, lists, numbers, texts."""

ATTEMPTS = 500


@dataclass
class Shrinker:
    """Looks for a smaller case that fails as the first one did."""

    check: Check
    kind: str
    attempts: int = ATTEMPTS
    error: BaseException | None = field(default=None, repr=False)

    def fails(self, case: Case) -> bool:
        """Does this case fail in the same way?"""
        self.attempts -= 1
        error = failure(self.check, case)
        if error is None or kind_of(error) != self.kind:
            return False
        self.error = error
        return True

    def settle(self, case: Case, smaller: Callable[[Case], Iterator[Case]]) -> Case:
        """Take each smaller case that still fails, in rounds over all that is smaller, until a round takes none."""
        place, taken = 0, False
        while self.attempts:
            found = next(itertools.islice(smaller(case), place, None), None)
            if found is None and not taken:
                break
            if found is None:
                place, taken = 0, False
            elif self.fails(found):
                case, taken = found, True  # what was in its place is gone
            else:
                place += 1
        return case


@dataclass(frozen=True)
class Shrunk:
    """`case` is the smallest that was found; `options` are those of the last case that `case_of` wrote."""

    case: Case
    options: Options
    error: BaseException
    attempts: int

    def show(self) -> str:
        changed = "; ".join(f"{name}: {value}" for name, value in self.options.items() if value != OPTIONS[name][0])
        again = f'pytest tests/conformance/test_random_specs.py --random-spec "{self.case.number}; {changed or "plainest"}"'
        return (
            f"the smallest case found in {self.attempts} attempts that fails in this way; this runs its options, with the text as drawn:\n"
            f"    {again}\n{type(self.error).__name__}: {self.error}\n{self.case.show()}"
        )


def shrink(case: Case, check: Check, error: BaseException, attempts: int = ATTEMPTS) -> Shrunk:
    """The smallest case found that fails as `case` did, with `error`."""
    shrinker = Shrinker(check, kind_of(error), attempts, error)
    case = shrinker.settle(case, plainer)
    options = case.options
    case = shrinker.settle(case, shorter)
    assert shrinker.error is not None
    return Shrunk(case, options, shrinker.error, attempts - shrinker.attempts)


def failure(check: Check, case: Case) -> Exception | None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            check(case, Path(folder))
        except Exception as error:  # noqa: BLE001  (whatever is wrong with the case is what is looked for)
            return error
    return None


def kind_of(error: BaseException) -> str:
    """What stays the same when a failure is made small: the codes of a diagnosis, what was compared, or where it was raised."""
    name = type(error).__name__
    if isinstance(error, SpecError):
        return f"{name} {sorted({each.code for each in error.diagnostics})}"
    if isinstance(error, AssertionError):
        return f"{name} {' '.join(str(error).split()[:2])}".rstrip(":")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    return f"{name} in {frames[-1].name if frames else '?'}"


def parsed(text: str) -> tuple[int, Options | None]:
    """`17; keep: exp; every: 4` -> the number, and the options, where not named the plainest; `17` -> the number, and those of the plan."""
    number, *rest = (part.strip() for part in text.split(";"))
    if not rest:
        return int(number), None
    given = dict(part.split(": ", 1) for part in rest if part != "plainest")
    unknown = [f"{name}: {value}" for name, value in given.items() if value not in OPTIONS.get(name, ())]
    if unknown:
        raise ValueError(f"there is no option {', '.join(unknown)}")
    return int(number), {name: given.get(name, values[0]) for name, values in OPTIONS.items()}


# -- options --------------------------------------------------------------------------------------------------------------


def plainer(case: Case) -> Iterator[Case]:
    """One option, or two that are legal only together, at the plainest value."""
    o = case.options
    moved = [name for name, values in OPTIONS.items() if o[name] != values[0]]
    for i, name in enumerate(moved):
        one = {**o, name: OPTIONS[name][0]}
        if legal(one):
            yield case_of(case.number, one)
            continue
        for other in moved[i + 1 :]:
            two = {**one, other: OPTIONS[other][0]}
            if legal(two):
                yield case_of(case.number, two)


# -- text -----------------------------------------------------------------------------------------------------------------


def shorter(case: Case) -> Iterator[Case]:
    """A shorter stream, or one part of a text dropped or made smaller."""
    yield from shorter_streams(case)
    for changed in smaller_trees(yaml.safe_load(case.text)):
        yield replace(case, text=written(changed))
    for path, text in case.files.items():
        for changed in smaller_trees(yaml.safe_load(text)):
            yield replace(case, files={**case.files, path: written(changed)})
        if path.rpartition("/")[2] not in case.text + "".join(other for name, other in case.files.items() if name != path):
            yield replace(case, files={name: other for name, other in case.files.items() if name != path})


def shorter_streams(case: Case) -> Iterator[Case]:
    for tokens in sorted({1, 2, case.tokens // 2, case.tokens - 1}):
        if 0 < tokens < case.tokens:
            yield replace(case, tokens=tokens, cuts=(*(cut for cut in case.cuts if cut < tokens), tokens))
    for cut in case.cuts[:-1]:
        yield replace(case, cuts=tuple(each for each in case.cuts if each != cut))
    if case.batch > 1:
        yield replace(case, batch=1)
    if case.position:
        yield replace(case, position=0)
    for name in case.without:
        yield replace(case, without=tuple(each for each in case.without if each != name))


DROPPED = ("outputs", "levels", "flows", "inputs", "uses", "dims", "params", "loss")
"""The parts of a spec that hold something to drop."""


def smaller_trees(tree: Tree) -> Iterator[Tree]:
    """The tree with one entry dropped, one name replaced by what it stands for, or one size made smaller; large parts come first."""
    for part in DROPPED:
        if part in tree:
            yield from without_entries(tree, (part,))
    for name, value in tree.get("flows", {}).items():
        inlined = without(tree, ("flows", name))
        yield replaced(inlined, name, f"({value})")
    for name, size in tree.get("dims", {}).items():
        for less in sorted({1, 2, size - 1}):
            if 0 < less < size:
                yield changed(tree, ("dims", name), less)


def without_entries(tree: Tree, path: tuple[Any, ...]) -> Iterator[Tree]:
    """Without what lies at the path, or an entry within it."""
    yield without(tree, path)
    inner = at(tree, path)
    names = inner if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
    for name in names:
        yield from without_entries(tree, (*path, name))


def at(tree: Tree, path: tuple[Any, ...]) -> Tree:
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else tree[name]
    return tree


def without(tree: Tree, path: tuple[Any, ...]) -> Tree:
    new = copy.deepcopy(tree)
    del at(new, path[:-1])[path[-1]]
    return new


def changed(tree: Tree, path: tuple[Any, ...], value: Tree) -> Tree:
    new = copy.deepcopy(tree)
    at(new, path[:-1])[path[-1]] = value
    return new


def replaced(tree: Tree, name: str, text: str) -> Tree:
    """With a text in place of a name, wherever expressions may stand."""
    if isinstance(tree, dict):
        return {key: replaced(value, name, text) for key, value in tree.items()}
    if isinstance(tree, list):
        return [replaced(value, name, text) for value in tree]
    return re.sub(rf"(?<![\w.]){re.escape(name)}(?![\w.(])", lambda _: text, tree) if isinstance(tree, str) else tree


def written(tree: Tree) -> str:
    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=140)
