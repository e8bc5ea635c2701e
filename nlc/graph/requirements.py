"""What a spec requires of its dims and params, `require: [0 <= b1, b1 < 1]`, for the values that are known."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping

from nlc.graph.constants import number_of
from nlc.graph.ops import BINARY
from nlc.language.expression import Binary, Call, Expr, Name, Number, Unary, parts_of
from nlc.language.spec import Spec

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


def broken(spec: Spec, known: Mapping[str, object]) -> Iterator[Expr]:
    """The requirements that do not hold of these values; one that asks for something unknown is left alone."""
    for requirement in spec.require:
        try:
            holds = _holds(requirement, known)
        except _Unknown:
            continue
        if not holds:
            yield requirement


def values_in(expr: Expr, known: Mapping[str, object]) -> str:
    """The values that a requirement speaks of, for messages: `b1` is 1.2."""
    names = dict.fromkeys(part.name for part in parts_of(expr) if isinstance(part, Name) and part.name in known)
    return ", ".join(f"`{name}` is {known[name]}" for name in names)


class _Unknown(Exception):
    """A value is not known when compiling, or is none."""


def _holds(expr: Expr, known: Mapping[str, object]) -> bool:
    match expr:
        case Binary(op="and", left=left, right=right):
            return _holds(left, known) and _holds(right, known)
        case Binary(op="or", left=left, right=right):
            return _holds(left, known) or _holds(right, known)
        case Unary(op="not", operand=operand):
            return not _holds(operand, known)
        case Binary(op=op, left=left, right=right) if op in COMPARISONS:
            return COMPARISONS[op](_value(left, known), _value(right, known))
    return _value(expr, known) != 0


def _value(expr: Expr, known: Mapping[str, object]) -> float:
    match expr:
        case Number(value=number):
            return number
        case Name(name=name):
            found = known.get(name)
            return found if isinstance(found, int | float) else _unknown()
        case Unary(op="-", operand=operand):
            return -_value(operand, known)
        case Binary(op=op, left=left, right=right) if op in BINARY:
            return _computed(BINARY[op], left, right, known=known)
        case Call(function=function, args=args, kwargs=()):
            return _computed(function, *args, known=known)
    return _unknown()


def _computed(op: str, *args: Expr, known: Mapping[str, object]) -> float:
    try:
        value = number_of(op, [_value(arg, known) for arg in args])
    except (KeyError, TypeError):
        value = None
    return _unknown() if value is None else value


def _unknown() -> float:
    raise _Unknown
