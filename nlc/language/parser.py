"""Expressions: a small precedence parser over the tokens of one YAML scalar.

From loose to tight: `or`, `and`, `not`, comparison (of two), `+ -`, `* / @`, `-x`, `^` (to the right). A minus directly
before a number belongs to the number, except under a power: `-2 ^ 2` is `-(2 ^ 2)`.
"""

from __future__ import annotations

from nlc.diagnostics import Diagnostic, Span
from nlc.language.expression import Attribute, Binary, Call, Expr, Lambda, ListOf, Name, Number, Text, Unary, children
from nlc.language.tokens import Place, Token, fail, number, tokenize, unescape
from nlc.language.wording import quoted

MAX_DEPTH = 64


class UnexpectedToken(Diagnostic):
    """A part of an expression where another kind of part is needed.

    Why: the expression does not follow the grammar.
    Wrong:  y: a + * b
    Right:  y: a + b
    """

    code = "NLC150"


class ExpressionTooDeep(Diagnostic):
    """An expression whose parts are nested beyond any use.

    Why: the limit keeps hostile or damaged files from exhausting the stack; a sum of many terms counts as deep.
    Wrong:  y: ((((((((x)))))))) and so on
    Right:  give the parts names in `flows`
    """

    code = "NLC155"


class ChainedComparison(Diagnostic):
    """Two comparisons in a row.

    Why: languages disagree on what `a < b < c` means.
    Wrong:  y: a < b < c
    Right:  y: a < b and b < c
    """

    code = "NLC157"


class MisplacedFunction(Diagnostic):
    """`name -> expression` inside another expression, or where a value is needed.

    Why: functions are no values; only a few keys, such as `call` of a store, take one.
    Wrong:  key: z -> z
    Right:  call: z -> z @ W
    """

    code = "NLC158"


class NotAnExpression(Diagnostic):
    """A truth value, or another word of YAML, where an expression is needed.

    Why: expressions compute with numbers and tensors; `true` has no number that all readers agree on.
    Wrong:  keep: true
    Right:  keep: 1
    """

    code = "NLC159"


class EmptyExpression(Diagnostic):
    """Nothing where an expression is needed.

    Why: a key without a value has no meaning, and would otherwise be ignored.
    Wrong:  rate:
    Right:  rate: 1
    """

    code = "NLC160"


class BadArguments(Diagnostic):
    """A named argument given twice, or an argument without a name after a named one.

    Why: it would not be certain which value is meant.
    Wrong:  y: f(a=1, a=2)
    Right:  y: f(a=1, b=2)
    """

    code = "NLC161"


CONSTANTS = frozenset({"true", "false", "null", "True", "False", "None"})
KEYWORDS = frozenset({"and", "or", "not", "in", "lambda"})
TAKES_FUNCTION = ("solve",)
"""Operators whose first argument may be a function, `x -> S(x) + a * x`."""

_COMPARISON = 4
_MINUS = 7
_LEVELS = {"or": 1, "and": 2, "+": 5, "-": 5, "*": 6, "/": 6, "@": 6, "^": 8}
_LEVELS.update(dict.fromkeys(("<", "<=", ">", ">=", "==", "!="), _COMPARISON))
_NOT = 3


def parse(text: str, place: Place | None = None) -> Expr:
    """The tree of one expression, or of a function `z -> ..`; raises SpecError with one diagnostic.

    `place` gives the span of a piece of `text`; without it, spans count from the start of `text` in a file without name.
    """
    place = place or _place_in(text)
    parser = _Parser(tokenize(text, place), place)
    expr = parser.function()
    _check_depth(expr)
    return expr


def _place_in(text: str) -> Place:
    def place(start: int, end: int) -> Span:
        return Span("", *_position(text, start), *_position(text, end))

    return place


def _position(text: str, offset: int) -> tuple[int, int]:
    return text.count("\n", 0, offset), offset - (text.rfind("\n", 0, offset) + 1)


def _check_depth(expr: Expr) -> None:
    """Chains such as `a + a + ..` are parsed in a loop, but make a tree as deep as they are long."""
    waiting = [(expr, 1)]
    while waiting:
        node, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise fail(_too_deep(node.span))
        waiting.extend((child, depth + 1) for child in children(node))


def _too_deep(span: Span) -> Diagnostic:
    return ExpressionTooDeep(f"an expression nested more than {MAX_DEPTH} deep", span, "give the parts names in `flows`")


class _Parser:
    def __init__(self, tokens: list[Token], place: Place) -> None:
        self.tokens = tokens
        self.place = place
        self.at = 0

    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    def take(self) -> Token:
        self.at += 1
        return self.tokens[self.at - 1]

    def sees(self, text: str) -> bool:
        return self.token.kind in ("sign", "name") and self.token.text == text

    def skip(self, text: str) -> bool:
        found = self.sees(text)
        self.at += found
        return found

    def since(self, start: int) -> Span:
        """From an offset to the end of the last token taken."""
        return self.place(start, self.tokens[self.at - 1].end)

    def function(self) -> Expr:
        """The whole text: an expression, or a function of one name."""
        first = self.token
        if first.kind == "end":
            raise fail(EmptyExpression("an expression is needed here", self.place(0, 0)))
        if first.kind == "name" and self.tokens[1].text == "->" and self.tokens[1].kind == "sign":
            self.at += 2
            body = self.expression(0, 1)
            self.finish()
            return Lambda(first.text, body, self.since(first.start))
        expr = self.expression(0, 1)
        self.finish()
        return expr

    def finish(self) -> None:
        if self.token.kind != "end":
            raise fail(self.unexpected("an operator"))

    def expression(self, level: int, depth: int) -> Expr:
        """All operators that bind at least as tight as `level`."""
        start = self.token.start
        left = self.prefix(level, depth)
        compared = False
        while (tightness := self.operator()) >= max(level, 1):
            if tightness == _COMPARISON and compared:
                span = self.place(self.token.start, self.token.end)
                raise fail(ChainedComparison("two comparisons in a row", span, "join two comparisons with `and`"))
            compared = tightness == _COMPARISON
            op = self.take().text
            right = self.expression(tightness if op == "^" else tightness + 1, depth + 1)
            left = Binary(op, left, right, self.since(start))
        return left

    def operator(self) -> int:
        """How tight the operator at the current token binds; 0 if there is none."""
        return _LEVELS.get(self.token.text, 0) if self.token.kind in ("sign", "name") else 0

    def prefix(self, level: int, depth: int) -> Expr:
        if depth > MAX_DEPTH:
            raise fail(_too_deep(self.place(self.token.start, self.token.end)))
        start = self.token.start
        if self.sees("not") and level <= _NOT:
            self.take()
            operand = self.expression(_NOT, depth + 1)
            return Unary("not", operand, self.since(start))
        if self.skip("-"):
            if self.token.kind == "number" and self.tokens[self.at + 1].text != "^":
                value = number(self.take().text)
                return Number(-value, self.since(start))
            operand = self.expression(_MINUS, depth + 1)
            return Unary("-", operand, self.since(start))
        return self.atom(depth)

    def atom(self, depth: int) -> Expr:
        token = self.token
        if token.kind == "number":
            return Number(number(self.take().text), self.since(token.start))
        if token.kind == "text":
            return Text(unescape(self.take(), self.place), self.since(token.start))
        if token.kind == "name" and token.text not in KEYWORDS:
            return self.name(depth)
        if self.skip("("):
            inner = self.expression(0, depth + 1)
            self.expect(")")
            return inner
        if self.skip("["):
            items = self.items("]", depth)
            return ListOf(tuple(items), self.since(token.start))
        raise fail(self.unexpected("a value"))

    def name(self, depth: int) -> Expr:
        token = self.take()
        if token.text in CONSTANTS:
            span = self.place(token.start, token.end)
            raise fail(NotAnExpression(f"`{token.text}` has no meaning in an expression", span, "write `1` or `0`"))
        if self.skip("("):
            return self.call(token, depth)
        if self.skip("."):
            if self.token.kind != "name":
                raise fail(self.unexpected("the name of a tensor"))
            tensor = self.take()
            return Attribute(token.text, tensor.text, self.since(token.start))
        return Name(token.text, self.since(token.start))

    def call(self, function: Token, depth: int) -> Expr:
        args: list[Expr] = []
        kwargs: dict[str, Expr] = {}
        while not self.sees(")"):
            start = self.token
            named = start.kind == "name" and self.tokens[self.at + 1].text == "="
            if named:
                self.at += 2
            takes = function.text in TAKES_FUNCTION and not named and not args
            value = self.inner_function(depth) if takes else self.expression(0, depth + 1)
            if named and start.text in kwargs:
                raise fail(BadArguments(f"the argument `{start.text}` is given twice", self.place(start.start, start.end)))
            if not named and kwargs:
                span = self.since(start.start)
                raise fail(BadArguments("an argument without a name after a named one", span, "name it, or put it first"))
            if named:
                kwargs[start.text] = value
            else:
                args.append(value)
            self.separator(")")
        self.take()
        return Call(function.text, tuple(args), tuple(kwargs.items()), self.since(function.start))

    def inner_function(self, depth: int) -> Expr:
        """An argument that may be a function of one name."""
        first = self.token
        if first.kind != "name" or first.text in KEYWORDS | CONSTANTS or self.tokens[self.at + 1].text != "->":
            return self.expression(0, depth + 1)
        self.at += 2
        body = self.expression(0, depth + 1)
        return Lambda(first.text, body, self.since(first.start))

    def items(self, closing: str, depth: int) -> list[Expr]:
        items: list[Expr] = []
        while not self.sees(closing):
            items.append(self.expression(0, depth + 1))
            self.separator(closing)
        self.take()
        return items

    def separator(self, closing: str) -> None:
        """A comma with something after it, or the closing bracket in sight."""
        if self.sees(closing):
            return
        if not self.skip(","):
            raise fail(self.unexpected(f"`,` or `{closing}`"))
        if self.sees(closing):
            raise fail(self.unexpected("a value"))

    def expect(self, text: str) -> None:
        if not self.skip(text):
            raise fail(self.unexpected(f"`{text}`"))

    def unexpected(self, needed: str) -> Diagnostic:
        token = self.token
        span = self.place(token.start, token.end)
        if token.text == "->" and token.kind == "sign":
            return MisplacedFunction("a function inside an expression", span, "`name -> ..` must be the whole value")
        if token.kind == "end":
            return UnexpectedToken(f"the expression ends where {needed} is needed", self.place(max(0, token.start - 1), token.start))
        help = _HELPS.get(token.text) if token.kind in ("sign", "name") else None
        return UnexpectedToken(f"{needed} is needed here, not {quoted(token.text)}", span, help)


_HELPS = {
    "=": "equality is written `==`; `name=value` stands only between the brackets of a call",
    "+": "a plus sign stands between two values",
    "in": "`in` is not an operator here",
    "lambda": "functions are written `z -> ..`",
    "not": "put `not ..` into brackets",
    ".": "only a name can be followed by `.tensor`",
}
