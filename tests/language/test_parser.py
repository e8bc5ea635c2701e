"""The grammar of expressions, and the place of every part."""

import re
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlc.diagnostics import NOWHERE, Span, SpecError
from nlc.language.expression import Attribute, Binary, Call, Expr, Lambda, ListOf, Name, Number, Text, Unary, children, to_text
from nlc.language.parser import CONSTANTS, KEYWORDS, MAX_DEPTH, parse


def without_spans(node: Any) -> Any:
    if isinstance(node, tuple):
        return tuple(without_spans(item) for item in node)
    if is_dataclass(node) and not isinstance(node, type):
        changes = {f.name: NOWHERE if f.name == "span" else without_spans(getattr(node, f.name)) for f in fields(node)}
        return replace(node, **changes)
    return node


@pytest.mark.parametrize(
    ("text", "grouped"),
    [
        ("a + b * c", "a + (b * c)"),
        ("a - b - c", "(a - b) - c"),
        ("a / b * c", "(a / b) * c"),
        ("a @ b @ c", "(a @ b) @ c"),
        ("a ^ b ^ c", "a ^ (b ^ c)"),
        ("-a ^ b", "-(a ^ b)"),
        ("-2 ^ b", "-(2 ^ b)"),
        ("a ^ -b", "a ^ (-b)"),
        ("a ^ -b ^ c", "a ^ (-(b ^ c))"),
        ("a ^ -b * c", "(a ^ (-b)) * c"),
        ("-a * b", "(-a) * b"),
        ("a * -b", "a * (-b)"),
        ("a - -1", "a - (-1)"),
        ("a + b < c * d", "(a + b) < (c * d)"),
        ("not a == b", "not (a == b)"),
        ("not a and b or c", "((not a) and b) or c"),
        ("a or b and c", "a or (b and c)"),
        ("f(a, b=c + d)", "f(a, b=(c + d))"),
        ("[a, (b)]", "[a, b]"),
        ("  a  ", "a"),
        ("(((a)))", "a"),
    ],
)
def test_operators_bind_as_documented(text: str, grouped: str) -> None:
    assert without_spans(parse(text)) == without_spans(parse(grouped))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", Number(1, NOWHERE)),
        ("-1", Number(-1, NOWHERE)),
        ("1e-3", Number(0.001, NOWHERE)),
        (".5", Number(0.5, NOWHERE)),
        ("2.", Number(2.0, NOWHERE)),
        ("x_1", Name("x_1", NOWHERE)),
        ("self.W", Attribute("self", "W", NOWHERE)),
        ("'a\\'b'", Text("a'b", NOWHERE)),
        ('"\\u00e9\\n"', Text("é\n", NOWHERE)),
        ("f()", Call("f", (), (), NOWHERE)),
        ("W(state=after)", Call("W", (), (("state", Name("after", NOWHERE)),), NOWHERE)),
        ("[]", ListOf((), NOWHERE)),
        ("z -> W", Lambda("z", Name("W", NOWHERE), NOWHERE)),
        ("solve(x -> x, q)", Call("solve", (Lambda("x", Name("x", NOWHERE), NOWHERE), Name("q", NOWHERE)), (), NOWHERE)),
        ("-x", Unary("-", Name("x", NOWHERE), NOWHERE)),
        ("a != b", Binary("!=", Name("a", NOWHERE), Name("b", NOWHERE), NOWHERE)),
    ],
)
def test_each_form_has_its_node(text: str, expected: Expr) -> None:
    assert without_spans(parse(text)) == expected


def test_numbers_keep_their_type() -> None:
    assert [type(n.value) for n in (parse("2"), parse("2.0"), parse("-2")) if isinstance(n, Number)] == [int, float, int]


def test_a_bracketed_part_counts_into_the_span_around_it() -> None:
    expr = parse("1 + (a + b) * c")

    assert isinstance(expr, Binary) and isinstance(expr.right, Binary)
    assert (expr.right.span.column, expr.right.span.end_column) == (4, 15)
    assert (expr.right.left.span.column, expr.right.left.span.end_column) == (5, 10)


def test_a_piece_of_a_file_gives_the_places() -> None:
    def place(start: int, end: int) -> Span:
        return Span("f.yaml", 3, 10 + start, 3, 10 + end)

    expr = parse("f(x)", place)

    assert isinstance(expr, Call)
    assert str(expr.args[0].span) == "f.yaml:4:13"


@pytest.mark.parametrize(
    ("text", "code", "columns"),
    [
        ("a +", "NLC150", (2, 3)),
        ("f(a b)", "NLC150", (4, 5)),
        ("f(a,, b)", "NLC150", (4, 5)),
        ("a.b.c", "NLC150", (3, 4)),
        ("a.1", "NLC150", (1, 3)),
        ("a * not b", "NLC150", (4, 7)),
        ("in", "NLC150", (0, 2)),
        ("a and", "NLC150", (4, 5)),
        ("f(a=)", "NLC150", (4, 5)),
        ("f(1=2)", "NLC150", (3, 4)),
        ("((a)", "NLC151", (0, 1)),
        ("a]", "NLC151", (1, 2)),
        ("a % b", "NLC152", (2, 3)),
        ("a\u00a0b", "NLC152", (1, 2)),
        ('"abc', "NLC153", (0, 1)),
        ("1e", "NLC156", (0, 2)),
        ("1.2.3", "NLC156", (0, 5)),
        ("9" * 41, "NLC156", (0, 41)),
        ("a == b == c", "NLC157", (7, 9)),
        ("f(z -> z)", "NLC158", (4, 6)),
        ("null", "NLC159", (0, 4)),
        ("", "NLC160", (0, 0)),
        ("   ", "NLC160", (0, 0)),
        ("f(a=1, b=2, a=3)", "NLC161", (12, 13)),
    ],
)
def test_mistakes_are_named_and_placed(text: str, code: str, columns: tuple[int, int]) -> None:
    with pytest.raises(SpecError) as caught:
        parse(text)

    (problem,) = caught.value.diagnostics
    assert (problem.code, (problem.span.column, problem.span.end_column)) == (code, columns)


@pytest.mark.parametrize("unit", ["(", "[", "f(", "-", "not ", "a^", "a+", "a,", "f(a=", "a<", ".", "'", "\\", "1"])
def test_long_repetitions_give_one_message(unit: str) -> None:
    for count in (MAX_DEPTH + 1, 1000, 100_000):
        with pytest.raises(SpecError) as caught:
            parse(unit * count + "x")
        assert len(caught.value.diagnostics) == 1


names = st.from_regex(re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,5}", re.ASCII), fullmatch=True).filter(lambda n: n not in KEYWORDS | CONSTANTS)
numbers = st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
signs = st.sampled_from(["+", "-", "*", "/", "^", "@", "<", "<=", ">", ">=", "==", "!=", "and", "or"])


@st.composite
def values(draw: st.DrawFn, depth: int = 4) -> Expr:
    """Any expression that the parser can give, without spans."""
    inner = values(depth - 1) if depth else st.nothing()
    match draw(st.integers(0, 7 if depth else 3)):
        case 0:
            return Number(draw(numbers), NOWHERE)
        case 1:
            return Name(draw(names), NOWHERE)
        case 2:
            return Text(draw(texts), NOWHERE)
        case 3:
            return Attribute(draw(names), draw(names), NOWHERE)
        case 4:
            args, kwargs = draw(st.lists(inner, max_size=2)), draw(st.dictionaries(names, inner, max_size=2))
            return Call(draw(names), tuple(args), tuple(kwargs.items()), NOWHERE)
        case 5:
            return ListOf(tuple(draw(st.lists(inner, max_size=2))), NOWHERE)
        case 6:
            operand, op = draw(inner), draw(st.sampled_from(["-", "not"]))
            # A minus before a plain number is read as a negative number.
            return operand if op == "-" and isinstance(operand, Number) else Unary(op, operand, NOWHERE)
    return Binary(draw(signs), draw(inner), draw(inner), NOWHERE)


@st.composite
def functions(draw: st.DrawFn) -> Expr:
    return Lambda(draw(names), draw(values()), NOWHERE)


expressions = values() | functions()


@given(expressions)
def test_text_of_an_expression_parses_to_the_same_expression(expr: Expr) -> None:
    assert without_spans(parse(to_text(expr))) == expr


@given(expressions)
def test_every_span_encloses_the_text_of_its_part(expr: Expr) -> None:
    text = to_text(expr)
    waiting = [parse(text)]
    while waiting:
        part = waiting.pop()
        piece = text[part.span.column : part.span.end_column] if "\n" not in text else to_text(part)
        assert without_spans(parse(piece)) == without_spans(part)
        waiting.extend(children(part))


@given(st.text(max_size=200) | st.text("ab1.+-*/^@<>=()[],'\" \\->notand", max_size=60))
def test_any_text_is_an_expression_or_a_mistake_in_it(text: str) -> None:
    try:
        parse(text)
        mistakes = 0
    except SpecError as error:
        mistakes = len(error.diagnostics)

    assert mistakes in (0, 1)
