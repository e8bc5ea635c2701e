"""Name maps: which tensor of a foreign checkpoint is which parameter of a spec, declared in YAML.

    dims, params   name of the spec: an expression of keys of config.json, or a list of them, of which the first counts whose keys are there
    require        key of config.json: the value that the map is for, where the key is there
    tensors        pattern of tensor names: pattern of parameter names, or {to: pattern, axes: [1, 0], else: another tensor}
    ignore         patterns of tensors that have no place in a spec
    fresh          patterns of parameters that begin as in a new model

In a pattern `{i}` stands for one part of a name between dots; the same words stand in `to`. `axes` are the axes of the tensor, by number,
in the order of the parameter. An axis that the parameter has as several, [G, R, K] for one of G * R * K, is split, and several are joined.
`else` is the tensor that is taken where the checkpoint lacks the first and the spec has the parameter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nlc.diagnostics import Diagnostic, Span, SpecError
from nlc.language.expression import Attribute, Binary, Expr, ListOf, Name, Number, Unary, parts_of, to_text
from nlc.language.files import read_text, shown_path
from nlc.language.form import MissingKey, UnknownKey, WrongKind, WrongVersion
from nlc.language.schema import VERSION
from nlc.language.values import expression
from nlc.language.wording import did_you_mean, listed, orderly, quoted
from nlc.language.yaml_reader import read
from nlc.language.yaml_tree import Broken, Entry, Node, Scalar, Sequence, describe
from nlc.language.yaml_tree import Mapping as Map
from nlc.runtime import codes

KEYS = ("nlc", "name", "doc", "dims", "params", "require", "tensors", "ignore", "fresh")
RULE_KEYS = ("to", "axes", "else")
SLOT = re.compile(r"\{(\w*)\}")
OPERATORS: dict[str, Callable[[float, float], float]] = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": lambda x, y: x / y,
}
Word = str | float | bool | None
"""A value of a config that is no list and no map."""


@dataclass(frozen=True)
class Pattern:
    """A name with slots `{i}`, each for one part between dots."""

    text: str
    span: Span

    @property
    def slots(self) -> tuple[str, ...]:
        return tuple(SLOT.findall(self.text))

    def match(self, name: str) -> dict[str, str] | None:
        """What stands in the slots where a name is of this form."""
        texts = SLOT.split(self.text)
        parts = [re.escape(text) if i % 2 == 0 else f"(?P<{text}>[^.]+)" for i, text in enumerate(texts)]
        found = re.fullmatch("".join(parts), name)
        return found.groupdict() if found else None

    def filled(self, slots: Mapping[str, str]) -> str:
        return SLOT.sub(lambda slot: slots[slot[1]], self.text)


@dataclass(frozen=True)
class TensorRule:
    """The tensors of a pattern are the parameters `to`; `instead` is the tensor that is taken where the checkpoint has none."""

    source: Pattern
    to: Pattern
    axes: tuple[int, ...] | None = None
    instead: str | None = None


@dataclass(frozen=True)
class Quantity:
    """A dim or param, by the first of these expressions whose keys the config has."""

    name: str
    choices: tuple[Expr, ...]
    span: Span


@dataclass(frozen=True)
class Required:
    """A key of the config and the value that the map is for."""

    key: str
    value: Word
    span: Span


@dataclass(frozen=True)
class NameMap:
    """`text` is what stands in the file `path`, for messages."""

    path: str
    name: str
    dims: tuple[Quantity, ...] = ()
    params: tuple[Quantity, ...] = ()
    require: tuple[Required, ...] = ()
    rules: tuple[TensorRule, ...] = ()
    ignore: tuple[Pattern, ...] = ()
    fresh: tuple[Pattern, ...] = ()
    text: str = field(default="", repr=False, compare=False)

    @property
    def sources(self) -> dict[str, str]:
        return {self.path: self.text}


def load_map(path: Path) -> NameMap:
    """The map in a file. Raises SpecError with all its mistakes, or DataError where the file cannot be read."""
    return map_from_text(read_text(path), shown_path(path))


def map_from_text(text: str, file: str) -> NameMap:
    """The map that a text writes. Raises SpecError."""
    document = read(text, file)
    reader = _Reader(document.problems)
    found = reader.map(document.root, file, text)
    if reader.problems:
        raise SpecError(orderly(reader.problems), {file: text})
    return found


class _Reader:
    """Turns the tree of a file into a map; mistakes collect in `problems`."""

    def __init__(self, problems: list[Diagnostic]) -> None:
        self.problems = list(problems)

    def map(self, root: Node, file: str, text: str) -> NameMap:
        if not isinstance(root, Map):
            self.wrong(root, "a name map is a map of keys")
            return NameMap(file, "")
        self.keys(root, KEYS, "a name map")
        self.version(root)
        for key in ("name", "tensors"):
            if key not in root.entries and not root.incomplete:
                self.problems.append(MissingKey(f"a name map needs `{key}`", root.span, "`docs/adapt.md` shows one"))
        name, _ = self.text(root.get("name")), self.text(root.get("doc"))
        dims, params = (tuple(self.quantity(e) for e in self.entries(root.get(key))) for key in ("dims", "params"))
        require = tuple(self.required(e) for e in self.entries(root.get("require")))
        rules = tuple(rule for e in self.entries(root.get("tensors")) if (rule := self.rule(e)) is not None)
        ignore, fresh = (tuple(self.patterns(root.get(key))) for key in ("ignore", "fresh"))
        return NameMap(file, name, dims, params, require, rules, ignore, fresh, text)

    def wrong(self, node: Node, what: str, help: str | None = None) -> None:
        if not isinstance(node, Broken):
            self.problems.append(WrongKind(f"{what}, not {describe(node)}", node.span, help))

    def bad(self, message: str, span: Span, help: str | None = None) -> None:
        self.problems.append(codes.BadNameMap(message, span, help))

    def keys(self, node: Map, known: tuple[str, ...], what: str) -> None:
        for entry in node.entries.values():
            if entry.key not in known:
                help = did_you_mean(entry.key, known) or f"it has {listed(known, 'and')}"
                self.problems.append(UnknownKey(f"{what} has no key {quoted(entry.key)}", entry.key_span, help))

    def version(self, root: Map) -> None:
        node = root.get("nlc")
        if node is None and not root.incomplete:
            self.problems.append(MissingKey("a name map needs `nlc`", root.span, f"start with `nlc: {VERSION}`"))
        elif isinstance(node, Scalar) and node.text != str(VERSION):
            help = f"write `nlc: {VERSION}`"
            self.problems.append(WrongVersion(f"this nlc reads language version {VERSION}, not {quoted(node.text)}", node.span, help))
        elif node is not None and not isinstance(node, Scalar):
            self.wrong(node, "`nlc` is a number")

    def text(self, node: Node | None) -> str:
        if node is None:
            return ""
        if isinstance(node, Scalar) and node.kind == "str":
            return node.text
        self.wrong(node, "text is needed here")
        return ""

    def entries(self, node: Node | None) -> Iterator[Entry]:
        if isinstance(node, Map):
            yield from node.entries.values()
        elif node is not None:
            self.wrong(node, "a map is needed here")

    def quantity(self, entry: Entry) -> Quantity:
        expr = expression(entry.value, self.problems)
        choices = expr.items if isinstance(expr, ListOf) else (expr,)
        for part in (part for choice in choices for part in parts_of(choice)):
            if not isinstance(part, Number | Name | Attribute | Unary) and not (isinstance(part, Binary) and part.op in OPERATORS):
                help = "it is made of keys of config.json, numbers, `+`, `-`, `*` and `/`"
                self.bad(f"`{to_text(part)}` is no number of a config", part.span, help)
        return Quantity(entry.key, choices, entry.key_span)

    def required(self, entry: Entry) -> Required:
        node = entry.value
        if not isinstance(node, Scalar):
            self.wrong(node, "a text, a number, a truth value or `null` is needed here")
            return Required(entry.key, None, entry.key_span)
        value: Word = node.text
        if node.kind in ("int", "float"):
            number = expression(node, self.problems)
            value = float(number.value) if isinstance(number, Number) else None
        elif node.kind in ("bool", "null"):
            value = node.text.lower() == "true" if node.kind == "bool" else None
        return Required(entry.key, value, entry.key_span)

    def pattern(self, text: str, span: Span) -> Pattern:
        pattern = Pattern(text, span)
        slots = pattern.slots
        if "" in slots or len(set(slots)) < len(slots) or re.search(r"[{}]", SLOT.sub("", text)):
            self.bad(f"{quoted(text)} is no pattern", span, "a slot is written `{i}`, once; it stands for one part of a name between dots")
        return pattern

    def patterns(self, node: Node | None) -> Iterator[Pattern]:
        if isinstance(node, Sequence):
            for item in node.items:
                if isinstance(item, Scalar) and item.kind == "str":
                    yield self.pattern(item.text, item.span)
                else:
                    self.wrong(item, "a pattern of names is text", 'quote it: "layers.{i}.bias"')
        elif node is not None:
            self.wrong(node, "a list of patterns is needed here")

    def rule(self, entry: Entry) -> TensorRule | None:
        source, node = self.pattern(entry.key, entry.key_span), entry.value
        if isinstance(node, Scalar) and node.kind == "str":
            return self.checked(TensorRule(source, self.pattern(node.text, node.span)))
        if not isinstance(node, Map):
            self.wrong(node, "the name of a parameter, or a map with `to`, is needed here", 'quote it: "h.{i}.u.rmsnorm.gain"')
            return None
        self.keys(node, RULE_KEYS, "an entry of `tensors`")
        to = node.get("to")
        if not isinstance(to, Scalar) or to.kind != "str":
            if to is not None:
                self.wrong(to, "the name of a parameter is text")
            elif not node.incomplete:
                self.problems.append(MissingKey("an entry of `tensors` needs `to`", node.span, "`to` names the parameter"))
            return None
        instead = self.text(node.get("else")) if "else" in node.entries else None
        return self.checked(TensorRule(source, self.pattern(to.text, to.span), self.axes(node.get("axes")), instead))

    def checked(self, rule: TensorRule) -> TensorRule:
        for slot in rule.to.slots:
            if slot and slot not in rule.source.slots:
                self.bad(f"`{{{slot}}}` does not stand in the name of the tensor", rule.to.span, f"there is {quoted(rule.source.text)}")
        for slot in rule.source.slots:
            if slot and slot not in rule.to.slots:
                text = f"`{{{slot}}}` does not stand in {quoted(rule.to.text)}, so several tensors would be one parameter"
                self.bad(text, rule.source.span, "use it there")
        if rule.instead is not None and rule.source.slots:
            help = "write such a rule for each tensor"
            self.bad("`else` names one tensor, so it goes with a name without slots", rule.source.span, help)
        return rule

    def axes(self, node: Node | None) -> tuple[int, ...] | None:
        if node is None:
            return None
        numbers = (
            [item.text for item in node.items if isinstance(item, Scalar) and item.kind == "int"] if isinstance(node, Sequence) else []
        )
        if sorted(numbers) != [str(i) for i in range(len(numbers))] or not numbers:
            help = "`axes: [1, 0]` turns a matrix: its second axis comes first"
            self.bad("`axes` is a list of the numbers of all axes of the tensor, from 0, each once", node.span, help)
            return None
        return tuple(map(int, numbers))
