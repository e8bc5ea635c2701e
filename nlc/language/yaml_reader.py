"""YAML text to a plain tree with spans.

Scalars follow the core schema of YAML 1.2 (`no` and `on` are text, `1e-3` is a number). What invites mistakes is refused:
duplicate keys, merge keys, tags, keys that are no text, recursive aliases. Depth and size are bounded, aliases counted
as often as they are used, so that hostile text costs a message and no time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

from nlc.diagnostics import Diagnostic, Span, SpecError
from nlc.language.wording import orderly, quoted
from nlc.language.yaml_tree import Broken, Entry, Mapping, Node, Scalar, Sequence, Source, describe

MAX_CHARACTERS = 1_000_000
MAX_NODES = 50_000
MAX_DEPTH = 64


class TooLarge(Diagnostic):
    """A file with more text than a spec can need.

    Why: a limit keeps generated or wrong files from taking minutes to read.
    Wrong:  a file of 20 MB
    Right:  a file below 1 MB; put repeated parts into `templates` or into files of their own
    """

    code = "NLC004"


class ForbiddenCharacter(Diagnostic):
    """A control character, such as a NUL byte.

    Why: YAML does not allow it, and it cannot be seen in an editor.
    Wrong:  name: delta<NUL>
    Right:  name: delta
    """

    code = "NLC006"


class EmptyFile(Diagnostic):
    """A file without content.

    Why: an empty spec has no meaning; most often the wrong file was named or saved.
    Wrong:  # only a comment
    Right:  nlc: 1
    """

    code = "NLC007"


class InvalidYaml(Diagnostic):
    """Text that is not YAML.

    Why: nothing after such a place can be read with certainty.
    Wrong:  inputs: {q: [H, K}
    Right:  inputs: {q: [H, K]}
    """

    code = "NLC008"


class TabIndentation(Diagnostic):
    """A line that is indented with a tab.

    Why: YAML allows only spaces there, since the width of a tab differs between editors.
    Wrong:  <tab>every: 1 token
    Right:  every: 1 token      (indented with spaces)
    """

    code = "NLC009"


class SeveralDocuments(Diagnostic):
    """A second YAML document in one file.

    Why: one file is one spec; a second document would be ignored.
    Wrong:  --- (in the middle of a file)
    Right:  two files, joined by `uses`
    """

    code = "NLC010"


class DuplicateKey(Diagnostic):
    """A key that stands twice in one map.

    Why: most readers keep the last one silently, so one of the two lines would have no effect.
    Wrong:  {rate: 1, rate: 0.5}
    Right:  {rate: 0.5}
    """

    code = "NLC011"


class MergeKey(Diagnostic):
    """The YAML merge key `<<`.

    Why: it is not part of YAML 1.2, and a message could not name the place a merged key came from.
    Wrong:  m: {<<: *memory, per: [H]}
    Right:  m: {use: memory, per: [H]}
    """

    code = "NLC012"


class ForeignTag(Diagnostic):
    """A YAML tag.

    Why: a spec is plain data; a tag asks the reader to make something else of a value.
    Wrong:  rate: !learned 0.1
    Right:  rate: 0.1
    """

    code = "NLC013"


class KeyIsNotText(Diagnostic):
    """A key that is a number, a truth value, a list, a map or missing.

    Why: every key of a spec is a name.
    Wrong:  flows: {1: f(x)}
    Right:  flows: {first: f(x)}
    """

    code = "NLC014"


class RecursiveAlias(Diagnostic):
    """An alias inside the value it stands for.

    Why: such a value has no end.
    Wrong:  levels: &all {again: *all}
    Right:  levels: {again: {learners: {}}}
    """

    code = "NLC015"


class TooManyValues(Diagnostic):
    """More values than a spec can need, counting each alias as often as it is used.

    Why: aliases of aliases describe billions of values in a few lines.
    Wrong:  b: [*a, *a, *a, *a]      (ten times over)
    Right:  a template, or a file of its own
    """

    code = "NLC016"


class TooDeep(Diagnostic):
    """Lists and maps inside each other beyond any use.

    Why: the limit keeps hostile or damaged files from exhausting the stack.
    Wrong:  [[[[[[[[ .. 65 of them
    Right:  give parts a name in `flows`, or put them into files of their own
    """

    code = "NLC017"


class CutByComma(Diagnostic):
    """A call with a comma, written without quotes inside `{..}` or `[..]`.

    Why: there YAML ends the text at the comma: `{rule: momentum(a, b)}` has the two keys `rule` and `b)`.
    Wrong:  {rule: momentum(a, b)}
    Right:  {rule: "momentum(a, b)"}, or {rule: {momentum: [a, b]}}
    """

    code = "NLC018"


class UnknownAlias(Diagnostic):
    """An alias `*name` without an anchor `&name` before it.

    Why: a `*` at the start of a value is a YAML alias, not a product.
    Wrong:  flows: {y: *x}
    Right:  flows: {y: x}
    """

    code = "NLC019"


@dataclass(frozen=True)
class Document:
    """What was read. `problems` are mistakes that did not keep the rest from being read."""

    root: Node
    source: Source
    problems: list[Diagnostic]


def read(text: str, file: str) -> Document:
    """The tree of `text`; raises SpecError where the text cannot be read at all."""
    return _Reader(Source(file, text.removeprefix("\ufeff"))).read()


_KINDS = (
    ("null", re.compile(r"(?:~|null|Null|NULL|)")),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)")),
    ("int", re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)")),
    ("float", re.compile(r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))")),
)
_NUMBER_START = frozenset("-+.0123456789")
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CUT_HELP = "quote it, or write the call as YAML, `{name: {..}}`"

# What libyaml and PyYAML say, and what we say. The first that is found counts.
_WORDINGS = (
    (r"tab character|character '\\t'", "a tab stands where YAML needs spaces", None),
    (r"cannot start any token", "a value cannot begin with {char}", "put the value into quotes"),
    (r"mapping values are not allowed", "a `:` where no key can stand", "put text with `: ` into quotes, and check the indentation"),
    (r"',' or '\]'", "this `[` list is not closed properly, or lacks a comma", None),
    (r"',' or '\}'", "this `{{` map is not closed properly, or lacks a comma", None),
    (r"unexpected end of stream", "this quote is never closed", None),
    (r"node content", "{char} where a value must stand", None),
    (r"unknown escape character", "an unknown escape in double quotes", "use single quotes, or write `\\\\`"),
    (r"nicode|chr\(\)", "an escape that is no character", None),
    (r"block end|'-' indicator|expected key", "this line does not fit into the list or map around it", "check the indentation"),
    (r"sequence entries are not allowed", "a list entry `- ` where none can stand", "begin the list on a line of its own"),
    (r"':'", "a line without `: ` in a map", "write `key: value`"),
    (r"document start", "text after the end of the document", None),
    (r"duplicate anchor", "an anchor that stands twice", None),
    (r"alphabetic or numeric", "a value cannot begin with {char}", "put the value into quotes"),
    (r"incompatible YAML document", "a YAML version that is not 1.1 or 1.2", "leave the `%YAML` line out"),
    (r"comment or a? ?line break|chomping or indentation", "text after a block sign `|` or `>`", "begin the text on the next line"),
)


@dataclass(frozen=True)
class _Anchor:
    node: Node
    size: int
    height: int


class _Reader:
    """Builds the tree from the events of the YAML parser, and stops at the first sign of excess."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.problems: list[Diagnostic] = []
        self.cuts: list[Diagnostic] = []
        self.anchors: dict[str, _Anchor | None] = {}
        self.flows: list[list[Scalar]] = []
        """The scalars of each open `{..}` or `[..]`, outermost first."""
        self.events: Iterator[Any] = iter(())
        self.nodes = 0
        self.height = 0
        """Of the node that was built last."""

    def read(self) -> Document:
        text = self.source.text
        if len(text) > MAX_CHARACTERS:
            self.fail(TooLarge(f"the text has {len(text)} characters; at most {MAX_CHARACTERS} are read", self.source.span(0, 0)))
        if found := _FORBIDDEN.search(text):
            name = f"U+{ord(found[0]):04X}"
            self.fail(ForbiddenCharacter(f"the character {name} is not allowed", self.source.span(*found.span()), "remove it"))
        try:
            root = self.document()
        except yaml.MarkedYAMLError as error:
            self.fail(self.invalid(error))
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            self.fail(InvalidYaml(f"this is not YAML: {_wording(str(error), '')[0]}", self.source.span(0, 0)))
        if self.cuts:
            raise SpecError(orderly(self.cuts), {self.source.file: text})
        return Document(root, self.source, self.problems)

    def fail(self, problem: Diagnostic) -> NoReturn:
        raise SpecError([problem], {self.source.file: self.source.text})

    def document(self) -> Node:
        self.events = yaml.parse(self.source.text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        next(self.events)
        event = next(self.events)
        if isinstance(event, yaml.StreamEndEvent):
            self.fail(EmptyFile("the file is empty", self.source.span(0, 0), "a spec starts with `nlc: 1`"))
        root = self.node(next(self.events), 1)
        if isinstance(root, Scalar) and root.kind == "null":
            self.fail(EmptyFile("the file is empty", self.source.span(0, 0), "a spec starts with `nlc: 1`"))
        next(self.events)
        event = next(self.events)
        if not isinstance(event, yaml.StreamEndEvent):
            self.fail(SeveralDocuments("a second document begins here", self.span(event), "one file holds one spec; remove the `---`"))
        return root

    def span(self, event: Any) -> Span:
        return self.source.span(*self.range(event))

    def range(self, event: Any) -> tuple[int, int]:
        start, end = event.start_mark, event.end_mark
        return self.source.offset(start.line, start.column), self.source.offset(end.line, end.column)

    def node(self, event: Any, depth: int) -> Node:
        """The node that `event` begins; counts it, and knows its anchor."""
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, depth)
        self.count(1, event)
        if depth > MAX_DEPTH:
            self.fail(TooDeep(f"lists and maps are nested more than {MAX_DEPTH} deep", self.span(event)))
        before = self.nodes
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        node = self.content(event, depth)
        if event.tag is not None:
            tag = event.tag if event.tag.startswith("!") else f"!!{event.tag.rpartition(':')[2]}"
            place = self.source.span(self.range(event)[0], self.range(event)[0] + 1)
            self.problems.append(ForeignTag(f"the tag {quoted(tag)} is not used in specs", place, "leave the tag out"))
            node = Broken(node.span)
        if event.anchor is not None:
            self.anchors[event.anchor] = _Anchor(node, self.nodes - before + 1, self.height)
        return node

    def count(self, nodes: int, event: Any) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            self.fail(TooManyValues(f"more than {MAX_NODES} values, counting each alias as often as it is used", self.span(event)))

    def alias(self, event: Any, depth: int) -> Node:
        name = event.anchor
        if name not in self.anchors:
            help = f"put the value into quotes, or define `&{name}` before it"
            self.problems.append(UnknownAlias(f"the alias {quoted('*' + name)} has no anchor", self.span(event), help))
            return Broken(self.span(event))
        anchor = self.anchors[name]
        if anchor is None:
            self.problems.append(RecursiveAlias(f"the alias {quoted('*' + name)} stands inside its own value", self.span(event)))
            return Broken(self.span(event))
        self.count(anchor.size, event)
        if depth + anchor.height > MAX_DEPTH:
            self.fail(TooDeep(f"lists and maps are nested more than {MAX_DEPTH} deep", self.span(event)))
        self.height = anchor.height
        return anchor.node

    def content(self, event: Any, depth: int) -> Node:
        if isinstance(event, yaml.ScalarEvent):
            self.height = 0
            return self.scalar(event)
        if event.flow_style:
            self.flows.append([])
        node = self.mapping(event, depth) if isinstance(event, yaml.MappingStartEvent) else self.sequence(event, depth)
        if event.flow_style:
            self.cuts.extend(self.cut(self.flows.pop()))
        return node

    def scalar(self, event: Any) -> Scalar:
        style = event.style or ""
        kind = "str" if style or event.tag is not None else _kind(event.value)
        start, end = self.range(event)
        scalar = Scalar(event.value, kind, style, self.source.span(start, end), self.source, start, end)
        if self.flows:
            self.flows[-1].append(scalar)
        return scalar

    def sequence(self, start: Any, depth: int) -> Sequence:
        items: list[Node] = []
        height = 0
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.node(event, depth + 1))
            height = max(height, self.height)
        self.height = height + 1
        return Sequence(tuple(items), self.source.span(self.range(start)[0], self.range(event)[1]))

    def mapping(self, start: Any, depth: int) -> Mapping:
        entries: dict[str, Entry] = {}
        height, refused = 0, False
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.node(event, depth + 1)
            value = self.node(next(self.events), depth + 1)
            height = max(height, self.height)
            if (problem := _key_problem(key, entries)) is not None:
                self.problems.append(problem)
                refused = True
            elif isinstance(key, Scalar):
                entries.setdefault(key.text, Entry(key.text, key.span, value))
            else:
                refused = True
        self.height = height + 1
        return Mapping(entries, self.source.span(self.range(start)[0], self.range(event)[1]), refused)

    def cut(self, scalars: list[Scalar]) -> list[Diagnostic]:
        """Calls in `{..}` or `[..]` that YAML ended at a comma: a scalar opens a bracket that a later one closes."""
        problems: list[Diagnostic] = []
        first: Scalar | None = None
        depth = 0
        for scalar in (s for s in scalars if not s.style):
            depth += scalar.text.count("(") - scalar.text.count(")")
            if depth > 0:
                first = first or scalar
            elif first is not None:
                problems.append(self.cut_at(first, scalar.end))
            if depth <= 0:
                first, depth = None, 0
        return problems

    def cut_at(self, first: Scalar, end: int) -> Diagnostic:
        whole = self.source.text[first.start : end]
        message = f"unbalanced bracket: YAML ends the text {quoted(first.text)} at the comma"
        help = f'quote it, `"{whole}"`, or write the call as YAML, `{{name: {{..}}}}`'
        return CutByComma(message, self.source.span(first.start, end), help if len(whole) < 60 and '"' not in whole else _CUT_HELP)

    def invalid(self, error: yaml.MarkedYAMLError) -> Diagnostic:
        """The message for text that the YAML parser refuses, for its cause where we can tell."""
        for scalars in reversed(self.flows):
            for scalar in scalars:
                if not scalar.style and scalar.text.count("(") > scalar.text.count(")"):
                    return self.cut_at(scalar, _call_end(self.source.text, scalar.start) or scalar.end)
        mark = error.problem_mark or error.context_mark
        at = self.source.offset(mark.line, mark.column) if mark else 0
        message, help = _wording(str(error.problem), self.source.text[at : at + 1])
        if "is not closed properly" in message or "never closed" in message:
            return self.unclosed(error, at, message)
        line = self.source.text[self.source.offset(mark.line if mark else 0, 0) :].split("\n", 1)[0]
        indentation = line[: len(line) - len(line.lstrip())]
        if "\t" in indentation:
            place = self.source.offset(mark.line, indentation.index("\t")) if mark else 0
            return TabIndentation("a tab in the indentation", self.source.span(place, place + 1), "indent with spaces")
        return InvalidYaml(message, self.source.span(at, min(at + 1, len(self.source.text))), help)

    def unclosed(self, error: yaml.MarkedYAMLError, at: int, message: str) -> Diagnostic:
        """Points at the opening bracket or quote; a note shows where it went wrong."""
        opening = error.context_mark
        start = self.source.offset(opening.line, opening.column) if opening else at
        here = self.source.span(at, min(at + 1, len(self.source.text)))
        notes = (("noticed here", here),) if self.source.text[at : at + 1].strip() else ()
        return InvalidYaml(message, self.source.span(start, start + 1), None, notes)


def _kind(text: str) -> str:
    """The type of a plain scalar in the core schema of YAML 1.2."""
    if text and text[0] not in _NUMBER_START and text[0] not in "~nNtTfF":
        return "str"
    return next((kind for kind, pattern in _KINDS if pattern.fullmatch(text)), "str")


def _call_end(text: str, start: int) -> int | None:
    """Where the brackets that open after `start` are all closed, on the same line."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] in "([{") - (text[at] in ")]}")
        if text[at] == "\n" or depth < 0:
            return None
        if depth == 0 and text[at] in ")]}":
            return at + 1
    return None


def _key_problem(key: Node, entries: dict[str, Entry]) -> Diagnostic | None:
    if isinstance(key, Broken):
        return None
    if not isinstance(key, Scalar) or key.kind != "str":
        return KeyIsNotText(f"{_key_words(key)}; keys are text", key.span, "keys are names, as in `rate: 1`")
    if key.text == "<<" and not key.style:
        return MergeKey("merge keys (`<<`) are not supported", key.span, "write the keys out, or use `templates` and `use`")
    if (first := entries.get(key.text)) is not None:
        return DuplicateKey(f"duplicate key {quoted(key.text)}", key.span, "remove one of the two", (("first used here", first.key_span),))
    return None


def _key_words(key: Node) -> str:
    if not isinstance(key, Scalar):
        return f"{describe(key)} as a key"
    return f"the key {quoted(key.text)} is {describe(key)}" if key.text else "a key is empty"


def _wording(problem: str, char: str) -> tuple[str, str | None]:
    """Our words for a message of the YAML parser."""
    shown = f"`{char}`" if char.strip() and char != "`" else "a backtick" if char == "`" else "this"
    for pattern, message, help in _WORDINGS:
        if re.search(pattern, problem):
            return message.format(char=shown), help
    return f"this is not YAML: {quoted(problem)}", None
