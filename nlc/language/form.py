"""Checks the form of a file against the models of `nlc.language.schema`, and puts what they find into words."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from nlc.diagnostics import Diagnostic, Span
from nlc.language.schema import FORMS, VERSION, SpecForm
from nlc.language.wording import MOST_SHOWN, closest, did_you_mean, listed, quoted
from nlc.language.yaml_reader import Document
from nlc.language.yaml_tree import Broken, Mapping, Node, Scalar, Sequence, describe


class UnknownKey(Diagnostic):
    """A key that the language does not have at this place.

    Why: unknown keys are most often typos, and a silently ignored period trains the wrong model.
    Wrong:  evrey: 16 tokens
    Right:  every: 16 tokens
    """

    code = "NLC101"


class MissingKey(Diagnostic):
    """A key that must be there is not.

    Why: there is no default that would be right for most specs.
    Wrong:  levels: {memory: {every: 1 token}}
    Right:  levels: {memory: {every: 1 token, learners: {}}}
    """

    code = "NLC102"


class WrongKind(Diagnostic):
    """A list, a map, text or a number where another of these is needed.

    Why: the value cannot be read as what its key stands for.
    Wrong:  flows: [f(x)]
    Right:  flows: {y: f(x)}
    """

    code = "NLC103"


class UnknownWord(Diagnostic):
    """A word that is none of the few that its key allows.

    Why: such words choose between meanings, so an unknown one has none.
    Wrong:  read: behind
    Right:  read: before
    """

    code = "NLC104"


class WrongVersion(Diagnostic):
    """A language version that this nlc does not read.

    Why: the meaning of a spec depends on the version it was written for.
    Wrong:  nlc: 2
    Right:  nlc: 1
    """

    code = "NLC105"


Path = tuple[int | str, ...]


def check_form(document: Document) -> list[Diagnostic]:
    """Every mistake in the form of the file, one for each cause."""
    root = document.root
    if not isinstance(root, Mapping):
        wrong = WrongKind(f"a spec is a map of keys, not {describe(root)}", root.span, f"start with `nlc: {VERSION}`")
        return [] if isinstance(root, Broken) else [wrong]
    if (problem := _check_version(root)) is not None:
        return [problem]
    try:
        SpecForm.model_validate(_plain(root))
    except ValidationError as error:
        return list(_explain(root, error.errors(include_url=False, include_input=False)))
    return []


def _check_version(root: Mapping) -> Diagnostic | None:
    """The version comes first: all other messages depend on it."""
    version = root.get("nlc")
    if not isinstance(version, Scalar) or (version.kind == "int" and version.text == str(VERSION)):
        return None
    message = f"this nlc reads language version {VERSION}, not {quoted(version.text)}"
    return WrongVersion(message, version.span, f"write `nlc: {VERSION}`")


def _plain(node: Node) -> object:
    """The node as pydantic checks it. Numbers keep their kind only; their value is read elsewhere."""
    match node:
        case Mapping(entries=entries):
            return {key: _plain(entry.value) for key, entry in entries.items()}
        case Sequence(items=items):
            return [_plain(item) for item in items]
        case Scalar(text=text, kind=kind):
            return {"str": text, "int": 1, "float": 1.0, "bool": True, "null": None}[kind]
    return None


def _explain(root: Mapping, errors: list[ErrorDetails]) -> Iterator[Diagnostic]:
    found = [(_locate(root, error["loc"]), error) for error in errors]
    missing = {path for path, error in found if error["type"] == "missing"}
    mistyped: set[Path] = set()
    shown = 0
    for path, error in found:
        node = _node(root, path)
        if isinstance(node, Broken):
            continue
        if error["type"] == "extra_forbidden" and shown < 4 * MOST_SHOWN:
            shown += 1
            near = closest(str(path[-1]), [str(p[-1]) for p in missing if p[:-1] == path[:-1]])
            mistyped.update({(*path[:-1], near)} if near else ())
            yield _unknown_key(root, path, near)
        elif error["type"] not in ("missing", "extra_forbidden"):
            yield _wrong_value(root, path, error)
    for path in missing - mistyped:
        parent = _node(root, path[:-1])
        if isinstance(parent, Mapping) and not parent.incomplete:
            span = _key_span(root, path[:-1]) if len(path) > 1 else Span(root.span.file, 0, 0, 0, 1)
            yield MissingKey(f"{_owner(path[:-1])} has no `{path[-1]}`", span, _MISSING_HELP.get(str(path[-1])))


_MISSING_HELP = {
    "nlc": f"start the file with `nlc: {VERSION}`",
    "name": "add `name: ..`",
    "learners": "a level is a map with `learners`",
    "starts": "say where sequences start: `sequence: {starts: new(doc)}`",
}


def _locate(root: Mapping, location: Path) -> Path:
    """The path in the tree: pydantic also names the branch of a union it took."""
    path: list[int | str] = []
    node: Node | None = root
    for part in location:
        child = _child(node, part)
        if child is None and isinstance(part, str) and part.startswith("<"):
            continue
        path.append(part)
        node = child
    return tuple(path)


def _child(node: Node | None, part: int | str) -> Node | None:
    if isinstance(node, Mapping) and isinstance(part, str):
        return node.get(part)
    if isinstance(node, Sequence) and isinstance(part, int) and part < len(node.items):
        return node.items[part]
    return None


def _node(root: Mapping, path: Path) -> Node | None:
    node: Node | None = root
    for part in path:
        node = _child(node, part)
    return node


def _key_span(root: Mapping, path: Path) -> Span:
    """The place of the key at the end of `path`, or of the entry of a list."""
    parent = _node(root, path[:-1])
    if isinstance(parent, Mapping) and path and str(path[-1]) in parent.entries:
        return parent.entries[str(path[-1])].key_span
    node = _node(root, path)
    return node.span if node is not None else root.span


def form_at(path: Path) -> str:
    """Which of FORMS a map at `path` is checked against."""
    if path[:1] == ("sequence",):
        return "sequence"
    if len(path) < 2:
        return "spec"
    if path[0] == "levels":
        if len(path) < 4:
            return "level"
        path = path[2:]
    return str(path[2]) if len(path) > 2 and path[2] in ("learn", "store", "reset") else "learner"


def _owner(path: Path) -> str:
    return "the spec" if not path else f"`{path[-1]}`" if isinstance(path[-1], str) else f"write {path[-1] + 1}"


def _unknown_key(root: Mapping, path: Path, near: str | None) -> Diagnostic:
    key, form = str(path[-1]), form_at(path[:-1])
    span = _key_span(root, path)
    known = list(FORMS[form].model_fields)
    if near is not None:
        help: str | None = f"did you mean `{near}`? (it is required here)"
    elif ":" in key:
        help = "put a blank after the `:`"
    else:
        help = _elsewhere(key, form) or did_you_mean(key, known) or f"known keys here: {listed(known, 'and')}"
    return UnknownKey(f"unknown key {quoted(key)}", span, help)


def _elsewhere(key: str, form: str) -> str | None:
    """Where a key belongs that stands at the wrong depth."""
    homes = [name for name, model in FORMS.items() if name != form and key in model.model_fields]
    return f"`{key}` belongs {_HOMES[homes[0]]}" if homes else None


_HOMES = {
    "spec": "at the top of the file",
    "level": "in a level",
    "learner": "in a learner",
    "learn": "in `learn`",
    "store": "in `store`",
    "reset": "in `reset`",
    "sequence": "in `sequence`",
}


_KINDS = {
    "dict_type": "a map",
    "model_type": "a map",
    "model_attributes_type": "a map",
    "list_type": "a list",
    "string_type": "text",
    "union_tag_not_found": "a map, or a list of maps",
    "union_tag_invalid": "a map, or a list of maps",
}
_KIND_HELP = {"store": "a store is written `{matrix: [K, V]}`", "learners": "learners are written `{name: {..}}`"}


def _wrong_value(root: Mapping, path: Path, error: ErrorDetails) -> Diagnostic:
    node = _node(root, path)
    assert node is not None, error
    key = f"`{path[-1]}`" if isinstance(path[-1], str) else f"entry {path[-1] + 1}"
    span = node.span if isinstance(node, Scalar) and node.text else _key_span(root, path)
    if error["type"] == "literal_error" and isinstance(node, Scalar) and node.kind == "str":
        field = FORMS[form_at(path[:-1])].model_fields[str(path[-1])]
        return unknown_word(node, field.annotation.__args__, key)  # type: ignore[union-attr]
    needed = _KINDS.get(error["type"], "one word")
    help = _KIND_HELP.get(str(path[-1])) or ("put it into quotes" if needed == "text" and describe(node) == "a number" else None)
    empty = isinstance(node, Scalar) and node.kind == "null"
    return WrongKind(f"{key} is empty; it must be {needed}" if empty else f"{key} must be {needed}, not {describe(node)}", span, help)


def unknown_word(node: Scalar, words: tuple[str, ...], key: str) -> Diagnostic:
    """`node` is not one of the words that `key` allows."""
    message = f"{quoted(node.text)} is not a value of {key}: {listed(words)}"
    return UnknownWord(message, node.span, did_you_mean(node.text, words))
