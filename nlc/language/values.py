"""Nodes of the YAML tree to expressions, calls, periods, sizes and names.

Each function reports into `problems` and then returns a stand-in, so that all mistakes of a file are found at once.
"""

from __future__ import annotations

import math
import re

from nlc.diagnostics import Diagnostic, Span, SpecError
from nlc.language.expression import Attribute, Call, Expr, Lambda, ListOf, Name, Number
from nlc.language.form import WrongKind
from nlc.language.parser import EmptyExpression, MisplacedFunction, NotAnExpression, parse
from nlc.language.schema import CLOCKS, RESERVED
from nlc.language.spec import Period
from nlc.language.tokens import MAX_DIGITS, BadNumber
from nlc.language.wording import did_you_mean, listed, quoted
from nlc.language.yaml_tree import Broken, Entry, Mapping, Node, Scalar, Sequence, describe

Problems = list[Diagnostic]


class NotAName(Diagnostic):
    """A name with characters that names do not have.

    Why: names are used in expressions and in generated code.
    Wrong:  flows: {my-key: f(x)}
    Right:  flows: {my_key: f(x)}
    """

    code = "NLC107"


class ReservedName(Diagnostic):
    """A definition of a word that already has a meaning in expressions.

    Why: `key` in `learn` would be two things at once.
    Wrong:  flows: {key: f(x)}
    Right:  flows: {k: f(x)}
    """

    code = "NLC108"


class BadPeriod(Diagnostic):
    """An `every` that is no positive whole count of ticks.

    Why: time is counted in whole ticks of a clock; a period below one has no meaning.
    Wrong:  every: 0 tokens
    Right:  every: 16 tokens
    """

    code = "NLC110"


class UnknownClock(Diagnostic):
    """An `every` on a clock that does not exist.

    Why: the clocks are token, step (of training), sequence, and update (of the learner that hosts a rule).
    Wrong:  every: 16 words
    Right:  every: 16 tokens
    """

    code = "NLC111"


class BadSize(Diagnostic):
    """A dim or axis that is no positive whole number.

    Why: it counts elements of a tensor.
    Wrong:  dims: {H: 0.5}
    Right:  dims: {H: 4}
    """

    code = "NLC112"


class NotACall(Diagnostic):
    """A value that is not one call, where one is needed.

    Why: a rule or store is a call of a spec, and a map in place of an expression is a call with one name.
    Wrong:  rule: {momentum: {rate: 0.1}, decay: 0.9}
    Right:  rule: {momentum: {rate: 0.1, decay: 0.9}}
    """

    code = "NLC114"


class NotAFunction(Diagnostic):
    """A value without `->` where a function is needed.

    Why: the function says what the store does with a query, and which name the query has.
    Wrong:  call: W @ z
    Right:  call: z -> W @ z
    """

    code = "NLC115"


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_GLUED_PERIOD = re.compile(r"([0-9]+)([A-Za-z]+)")


def check_name(name: str, span: Span, problems: Problems, *, free: bool = True) -> bool:
    """Whether `name` may be defined; `free` names must not be reserved words of expressions."""
    if not _NAME.fullmatch(name):
        fixed = re.sub(r"\W+", "_", name, flags=re.ASCII)
        help = f"write `{fixed}`" if _NAME.fullmatch(fixed) and len(fixed) < 40 else "names have letters, digits and `_`"
        problems.append(NotAName(f"{quoted(name)} is not a name", span, help))
        return False
    if free and name in RESERVED:
        problems.append(ReservedName(f"`{name}` is a reserved word", span, f"choose another name, such as `{name}_`"))
        return False
    return True


def expression(node: Node, problems: Problems, *, function: bool = False) -> Expr:
    """The expression a node writes; a function `z -> ..` only where one is allowed."""
    try:
        expr = _expression(node, problems)
    except SpecError as error:
        problems.extend(error.diagnostics)
        return Number(0, node.span)
    if isinstance(expr, Lambda):
        if function:
            first = expr.span
            place = Span(first.file, first.line, first.column, first.line, first.column + len(expr.parameter))
            check_name(expr.parameter, place, problems)
        else:
            problems.append(MisplacedFunction("a function where a value is needed", expr.span, "leave `name ->` out"))
    return expr


def _expression(node: Node, problems: Problems) -> Expr:
    match node:
        case Scalar(kind="str"):
            return parse(node.text, node.place)
        case Scalar(kind="int" | "float"):
            return _number(node)
        case Scalar(kind="bool"):
            raise SpecError([NotAnExpression("a truth value where an expression is needed", node.span, "write `1` or `0`")])
        case Scalar():
            raise SpecError([EmptyExpression("an expression is needed here", node.span)])
        case Sequence(items=items):
            return ListOf(tuple(expression(item, problems) for item in items), node.span)
        case Mapping():
            return _call_in_yaml(node, problems)
    return Number(0, node.span)


def _number(node: Scalar) -> Number:
    if len(node.text) > MAX_DIGITS:
        raise SpecError([BadNumber(f"the number {quoted(node.text)} is too long", node.span)])
    text = node.text.lower()
    if node.kind == "int":
        return Number(int(text, 0) if text[:2] in ("0x", "0o") else int(text), node.span)
    value = float(text.replace(".inf", "inf").replace(".nan", "nan"))
    if not math.isfinite(value):
        raise SpecError([BadNumber(f"{quoted(node.text)} is not a finite number", node.span)])
    return Number(value, node.span)


def _call_in_yaml(node: Mapping, problems: Problems) -> Call:
    """`{name: {argument: value}}`, `{name: [value, ..]}` or `{name: value}`."""
    if len(node.entries) != 1:
        if not node.incomplete:
            raise SpecError(
                [NotACall(f"a call is a map with one name, not {len(node.entries)}", node.span, "write `{name: {argument: value}}`")]
            )
        return Call("_", (), (), node.span)
    (entry,) = node.entries.values()
    check_name(entry.key, entry.key_span, problems, free=False)
    end = entry.value.span
    span = Span(end.file, entry.key_span.line, entry.key_span.column, end.end_line, end.end_column)
    match entry.value:
        case Mapping(entries=entries):
            return Call(entry.key, (), tuple(_argument(e, problems) for e in entries.values()), span)
        case Sequence(items=items):
            return Call(entry.key, tuple(expression(item, problems) for item in items), (), span)
        case Scalar(kind="null"):
            message = f"nothing after the call {quoted(entry.key)}"
            raise SpecError([EmptyExpression(message, entry.key_span, f"a call without arguments is `{{{entry.key}: {{}}}}`")])
    return Call(entry.key, (expression(entry.value, problems),), (), span)


def _argument(entry: Entry, problems: Problems) -> tuple[str, Expr]:
    check_name(entry.key, entry.key_span, problems, free=False)
    return entry.key, expression(entry.value, problems)


def call(node: Node, key: str, problems: Problems) -> Call | None:
    """A value that must be one call of a spec."""
    before = len(problems)
    expr = expression(node, problems)
    if isinstance(expr, Call):
        return expr
    if len(problems) == before and not isinstance(node, Broken):
        help = f"write `{{{expr.name}: {{}}}}`" if isinstance(expr, Name) else "write `{name: {argument: value}}`"
        problems.append(NotACall(f"`{key}` must be a call", node.span, help))
    return None


def function(node: Node, key: str, problems: Problems) -> Expr:
    """A value that must be a function `z -> ..`."""
    before = len(problems)
    expr = expression(node, problems, function=True)
    if not isinstance(expr, Lambda) and len(problems) == before and not isinstance(node, Broken):
        problems.append(NotAFunction(f"`{key}` must be a function", node.span, "write `z -> ..`, where `z` is the query"))
    return expr


def axes(node: Node, key: str, problems: Problems) -> tuple[Expr, ...]:
    """`[H, K]`: names or sizes."""
    if isinstance(node, Sequence):
        return tuple(size(item, problems) for item in node.items)
    if not isinstance(node, Broken):
        help = f"write `[{node.text}]`" if isinstance(node, Scalar) and _NAME.fullmatch(node.text) else "write a list such as `[H, K]`"
        problems.append(WrongKind(f"{key} must be a list of axes, not {describe(node)}", node.span, help))
    return ()


def axis_names(node: Node, key: str, problems: Problems) -> tuple[str, ...]:
    """`[H, K]` where each axis has a name; a number is a size and its name."""
    before = len(problems)
    found = axes(node, key, problems)
    if len(problems) == before:
        for axis in found:
            if not isinstance(axis, Name | Number):
                help = "give the size a name in `dims`; one number has the axes `[]`"
                problems.append(WrongKind("an axis is the name of a dim, or a number", axis.span, help))
    return tuple(axis.name if isinstance(axis, Name) else str(axis.value) for axis in found if isinstance(axis, Name | Number))


def size(node: Node, problems: Problems) -> Expr:
    """A whole number from 1 on, or an expression of dims."""
    expr = expression(node, problems)
    if isinstance(expr, Number) and isinstance(node, Scalar) and _is_literal(node) and not _is_count(expr):
        problems.append(BadSize(f"a size is a whole number from 1 on, not {quoted(node.text)}", node.span))
    return expr


def _is_literal(node: Scalar) -> bool:
    """Whether the node is a number itself, and no stand-in for something that was reported."""
    return len(node.text) <= MAX_DIGITS and re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", node.text.strip()) is not None


def _is_count(number: Number) -> bool:
    return isinstance(number.value, int) and number.value >= 1


def period(node: Node, problems: Problems, key: str = "every") -> Period | None:
    """`16 tokens`: an expression and a clock. `key`: where it stands."""
    if isinstance(node, Broken):
        return None
    if not isinstance(node, Scalar) or node.kind != "str":
        what = "a count and a clock" if isinstance(node, Scalar) and node.kind != "null" else f"a count and a clock, not {describe(node)}"
        problems.append(BadPeriod(f"`{key}` must be {what}", node.span, _period_help(node)))
        return None
    words = list(re.finditer(r"\S+", node.text))
    clock = words[-1][0] if words else ""
    singular = clock.removesuffix("s")
    if singular not in CLOCKS:
        problems.append(_clock_problem(node, clock, words[-1].start() if words else 0, len(words), key))
        return None
    if len(words) < 2:
        problems.append(BadPeriod(f"`{key}` has no count", node.span, f"write `1 {singular}`"))
        return None
    return _counted(node, node.text[: words[-1].start()].rstrip(), singular, problems)


def _period_help(node: Node) -> str:
    plain = isinstance(node, Scalar) and node.kind == "int" and len(node.text) < 12
    return f"write `{node.text} tokens`" if plain and isinstance(node, Scalar) else "write `16 tokens`"


def _clock_problem(node: Scalar, clock: str, start: int, words: int, key: str) -> Diagnostic:
    glued = _GLUED_PERIOD.fullmatch(clock)
    if words == 1 and glued and glued[2].removesuffix("s") in CLOCKS:
        return BadPeriod(f"`{key}` needs a blank before the clock", node.span, f"write `{glued[1]} {glued[2]}`")
    if words < 2 or not clock.isalpha():
        return BadPeriod(f"`{key}` must be a count and a clock", node.span, "write `16 tokens`")
    help = did_you_mean(clock, [*CLOCKS, *(f"{c}s" for c in CLOCKS)]) or f"the clocks are {listed(CLOCKS, 'and')}"
    return UnknownClock(f"unknown clock {quoted(clock)}", node.place(start, start + len(clock)), help)


def _counted(node: Scalar, count: str, clock: str, problems: Problems) -> Period | None:
    try:
        expr = parse(count, node.place)
    except SpecError as error:
        problems.extend(error.diagnostics)
        return None
    if isinstance(expr, Number) and not _is_count(expr):
        problems.append(
            BadPeriod(f"a period is a whole number from 1 on, not {quoted(count)}", expr.span, "periods count whole ticks of the clock")
        )
    if isinstance(expr, Lambda | ListOf | Attribute):
        problems.append(BadPeriod("a period is a number or an expression of dims and params", expr.span))
    return Period(expr, clock, node.span)
