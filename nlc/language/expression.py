"""The syntax tree of expressions (docs/language.md, "Expressions").

    expr := number | name | expr (+ - * / ^ @) expr | -expr | (expr) | name(arg, .., name=arg) | name.tensor
          | comparison | and or not | [expr, ..]
    fn   := name -> expr

Every node knows the place in the YAML file it was written at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nlc.diagnostics import Span


@dataclass(frozen=True)
class Number:
    value: float | int
    span: Span


@dataclass(frozen=True)
class Text:
    """A quoted string, as in `load('layers.3.mlp')`."""

    value: str
    span: Span


@dataclass(frozen=True)
class Name:
    name: str
    span: Span


@dataclass(frozen=True)
class Attribute:
    """`self.W`: a tensor of a learner."""

    owner: str
    name: str
    span: Span


@dataclass(frozen=True)
class Call:
    function: str
    args: tuple[Expr, ...]
    kwargs: tuple[tuple[str, Expr], ...]
    span: Span


@dataclass(frozen=True)
class Unary:
    """`op` is `-` or `not`."""

    op: str
    operand: Expr
    span: Span


@dataclass(frozen=True)
class Binary:
    """`op` is one of `+ - * / ^ @ < <= > >= == != and or`."""

    op: str
    left: Expr
    right: Expr
    span: Span


@dataclass(frozen=True)
class ListOf:
    """`[H, K]`."""

    items: tuple[Expr, ...]
    span: Span


@dataclass(frozen=True)
class Lambda:
    """`z -> z @ W`."""

    parameter: str
    body: Expr
    span: Span


Expr = Number | Text | Name | Attribute | Call | Unary | Binary | ListOf | Lambda


def children(expr: Expr) -> tuple[Expr, ...]:
    """The direct subexpressions, in the order they are written."""
    match expr:
        case Call(args=args, kwargs=kwargs):
            return (*args, *(value for _, value in kwargs))
        case Unary(operand=operand):
            return (operand,)
        case Binary(left=left, right=right):
            return (left, right)
        case ListOf(items=items):
            return items
        case Lambda(body=body):
            return (body,)
    return ()


def parts_of(expr: Expr) -> Iterator[Expr]:
    """The expression and all its subexpressions."""
    yield expr
    for child in children(expr):
        yield from parts_of(child)


def to_text(expr: Expr) -> str:
    """The expression as one would write it, fully parenthesised only where precedence needs it."""
    return _text(expr, 0)


_PRECEDENCE = {"or": 1, "and": 2, "<": 4, "<=": 4, ">": 4, ">=": 4, "==": 4, "!=": 4, "+": 5, "-": 5, "*": 6, "/": 6, "@": 6, "^": 8}


def _text(expr: Expr, outer: int) -> str:
    match expr:
        case Number(value=value):
            text = repr(value)
            return f"({text})" if outer > 7 and text.startswith("-") else text
        case Text(value=text):
            return repr(text)
        case Name(name=name):
            return name
        case Attribute(owner=owner, name=name):
            return f"{owner}.{name}"
        case Call(function=function, args=args, kwargs=kwargs):
            inner = [_text(a, 0) for a in args] + [f"{k}={_text(v, 0)}" for k, v in kwargs]
            return f"{function}({', '.join(inner)})"
        case ListOf(items=items):
            return f"[{', '.join(_text(i, 0) for i in items)}]"
        case Lambda(parameter=parameter, body=body):
            return f"{parameter} -> {_text(body, 0)}"
        case Unary(op=op, operand=operand):
            level = 3 if op == "not" else 7
            text = f"{'not ' if op == 'not' else '-'}{_text(operand, level)}"
            return f"({text})" if outer > level else text
        case Binary(op=op, left=left, right=right):
            level = _PRECEDENCE[op]
            right_level = level if op == "^" else level + 1
            left_level = level + (op == "^" or level == 4)
            text = f"{_text(left, left_level)} {op} {_text(right, right_level)}"
            return f"({text})" if outer > level else text
    raise AssertionError(expr)
