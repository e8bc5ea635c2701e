"""Text of an expression to tokens."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from nlc.diagnostics import Diagnostic, Span, SpecError
from nlc.language.wording import quoted

MAX_LENGTH = 4000
MAX_DIGITS = 40

Place = Callable[[int, int], Span]
"""Where the characters from one offset to another stand in a file."""


class UnbalancedBracket(Diagnostic):
    """A bracket that is opened and not closed, or closed and not opened.

    Why: the rest of the expression cannot be read with certainty.
    Wrong:  y: exp(f(x)
    Right:  y: exp(f(x))
    """

    code = "NLC151"


class UnknownCharacter(Diagnostic):
    """A character that expressions do not have.

    Why: expressions are written with names, numbers, calls and a few operators.
    Wrong:  y: a × b
    Right:  y: a * b
    """

    code = "NLC152"


class UnfinishedText(Diagnostic):
    """A quote that is not closed, or an escape in a quoted text that means nothing.

    Why: the text has no certain end.
    Wrong:  y: load('layers.3)
    Right:  y: load('layers.3')
    """

    code = "NLC153"


class ExpressionTooLong(Diagnostic):
    """An expression with thousands of characters.

    Why: nobody can read it, and it is most often a damaged file.
    Wrong:  y: a + a + a + .. for pages
    Right:  give the parts names in `flows`
    """

    code = "NLC154"


class BadNumber(Diagnostic):
    """A number that cannot be read, or is infinite.

    Why: a name cannot begin with a digit, and a number must be a finite float or integer.
    Wrong:  y: 2x + 1e999
    Right:  y: 2 * x + 1.0e30
    """

    code = "NLC156"


@dataclass(frozen=True, slots=True)
class Token:
    """`kind` is `number`, `name`, `text`, `sign` or `end`."""

    kind: str
    text: str
    start: int
    end: int


_TOKEN = re.compile(
    r"(?P<blank>[ \t\r\n]+)"
    r"|(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<text>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"
    r"|(?P<sign>->|<=|>=|==|!=|\*\*|&&|\|\||[-+*/^@<>=()\[\],.])",
    re.DOTALL,
)
_INSTEAD = {
    "**": "write `^` for powers",
    "&&": "write `and`",
    "||": "write `or`",
    "&": "write `and`",
    "|": "write `or`",
    "!": "write `not`",
    "×": "write `*`",
    "·": "write `*`",
    "−": "write `-`",
    "–": "write `-`",
    "÷": "write `/`",
    "≤": "write `<=`",
    "≥": "write `>=`",
    "≠": "write `!=`",
    "→": "write `->`",
    "{": "brackets for grouping are `(..)`, lists are `[..]`",
    "}": "brackets for grouping are `(..)`, lists are `[..]`",
    ":": "arguments are written `name=value`",
    "%": "there is no remainder operator",
}
_CLOSING = {"(": ")", "[": "]"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_GLUED = re.compile(r"[A-Za-z0-9_.]+")


def fail(problem: Diagnostic) -> SpecError:
    return SpecError([problem])


def tokenize(text: str, place: Place) -> list[Token]:
    """All tokens, `end` last; brackets are balanced."""
    if len(text) > MAX_LENGTH:
        message = f"an expression of {len(text)} characters; at most {MAX_LENGTH} are read"
        raise fail(ExpressionTooLong(message, place(0, 1), "give the parts names in `flows`"))
    tokens: list[Token] = []
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None or found[0] in ("**", "&&", "||"):
            raise fail(_unknown(text, at, place))
        kind = str(found.lastgroup)
        if kind == "number":
            _check_number(text, found.start(), found.end(), place)
        if kind != "blank":
            tokens.append(Token(kind, found[0], at, found.end()))
        at = found.end()
    tokens.append(Token("end", "", len(text), len(text)))
    _check_brackets(tokens, place)
    return tokens


def number(text: str) -> int | float:
    return int(text) if text.isdigit() else float(text)


def unescape(token: Token, place: Place) -> str:
    """The text between the quotes."""

    def replace(found: re.Match[str]) -> str:
        digits = found[1] or found[2] or found[3]
        if digits and int(digits, 16) <= 0x10FFFF:
            return chr(int(digits, 16))
        if found[4] in _ESCAPES:
            return _ESCAPES[found[4]]
        start = token.start + 1 + found.start()
        message = f"the escape {quoted(found[0])} means nothing"
        raise fail(UnfinishedText(message, place(start, start + len(found[0])), "write a backslash as `\\\\`"))

    return _ESCAPE.sub(replace, token.text[1:-1])


def _unknown(text: str, at: int, place: Place) -> Diagnostic:
    if text[at] in "'\"":
        return UnfinishedText("this quote is never closed", place(at, at + 1))
    sign = text[at : at + 2] if text[at : at + 2] in _INSTEAD else text[at]
    shown = f"`{sign}`" if sign.isprintable() and not sign.isspace() and sign != "`" else f"U+{ord(sign):04X}"
    kind = "operator" if len(sign) == 2 else "character"
    return UnknownCharacter(f"unknown {kind} {shown} in an expression", place(at, at + len(sign)), _INSTEAD.get(sign))


def _check_number(text: str, start: int, end: int, place: Place) -> None:
    rest = _GLUED.match(text, end)
    if rest is not None:
        whole = text[start : rest.end()]
        help = f"write `{text[start:end]} * {rest[0]}`" if rest[0][0].isalpha() and len(whole) < 30 else None
        raise fail(BadNumber(f"{quoted(whole)} is neither a number nor a name", place(start, rest.end()), help))
    digits = text[start:end]
    if len(digits) > MAX_DIGITS or math.isinf(float(digits)):
        raise fail(BadNumber(f"the number {quoted(digits)} is too large or too long", place(start, end)))


def _check_brackets(tokens: list[Token], place: Place) -> None:
    opened: list[Token] = []
    for token in tokens:
        if token.kind != "sign":
            continue
        if token.text in _CLOSING:
            opened.append(token)
        elif token.text in (")", "]"):
            if not opened:
                raise fail(UnbalancedBracket(f"this `{token.text}` closes nothing", place(token.start, token.end)))
            last = opened.pop()
            if _CLOSING[last.text] != token.text:
                message = f"`{token.text}` where `{_CLOSING[last.text]}` is needed"
                note = (f"to close this `{last.text}`", place(last.start, last.end))
                raise fail(UnbalancedBracket(message, place(token.start, token.end), None, (note,)))
    if opened:
        first = opened[-1]
        raise fail(UnbalancedBracket(f"this `{first.text}` is never closed", place(first.start, first.end)))
