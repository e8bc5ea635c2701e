"""YAML text to a plain tree: the core schema of YAML 1.2, places, and what is refused."""

import time
from pathlib import Path

import pytest
import yaml

from nlc.diagnostics import SpecError
from nlc.language import load, loads
from nlc.language.yaml_reader import MAX_CHARACTERS, MAX_NODES, read
from nlc.language.yaml_tree import Mapping, Node, Scalar, Sequence

ERRORS = Path(__file__).parents[1] / "errors"


def entry(text: str) -> Node:
    root = read(text, "file.yaml").root
    assert isinstance(root, Mapping)
    return next(iter(root.entries.values())).value


def scalar(text: str) -> Scalar:
    value = entry(text)
    assert isinstance(value, Scalar)
    return value


def codes(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        loads(text)
    return [problem.code for problem in caught.value.diagnostics]


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        *(
            (word, "str")
            for word in ("no", "yes", "on", "off", "y", "n", "No", "ON", "1_000", "0b1", "1:30", "2001-01-01", "=", "nUll", "tRue")
        ),
        *((word, "bool") for word in ("true", "True", "TRUE", "false", "False", "FALSE")),
        *((word, "null") for word in ("null", "Null", "NULL", "~", "")),
        *((word, "int") for word in ("0", "12", "-3", "+7", "0x1F", "0o17", "007")),
        *((word, "float") for word in ("1e-3", "1.0e-3", "1.", ".5", "-1.5E+3", ".inf", "-.INF", ".nan", "+.Inf")),
        *((word, "str") for word in ("'1'", '"true"', "'null'", "a b", "1 token", "-x", "e5", ".")),
    ],
)
def test_scalars_follow_the_core_schema(written: str, kind: str) -> None:
    assert scalar(f"key: {written}").kind == kind


def test_keys_and_values_know_their_places() -> None:
    root = read("# comment\nnäme: {k: [a, 'b c']}\n", "file.yaml").root

    assert isinstance(root, Mapping)
    outer = root.entries["näme"]
    assert str(outer.key_span) == "file.yaml:2:1"
    assert isinstance(outer.value, Mapping)
    inner = outer.value.entries["k"]
    assert str(inner.key_span) == "file.yaml:2:8"
    assert isinstance(inner.value, Sequence)
    assert [str(item.span) for item in inner.value.items] == ["file.yaml:2:12", "file.yaml:2:15"]


@pytest.mark.parametrize(
    ("text", "piece", "place"),
    [
        ("k: a + bc", "bc", (0, 7, 0, 9)),
        ("k: 'it''s bc'", "bc", (0, 10, 0, 12)),
        ('k: "\\u00e9\\t\\x41 bc"', "bc", (0, 17, 0, 19)),
        ('k: "a \\\n   bc"', "bc", (1, 3, 1, 5)),
        ("k: a +\n   bc", "bc", (1, 3, 1, 5)),
        ("k: 'a\n\n   bc'", "bc", (2, 3, 2, 5)),
        ("k: |\n   a\n   bc\n", "bc", (2, 3, 2, 5)),
        ("k: >\n   a\n\n   bc\n", "bc", (3, 3, 3, 5)),
        ("k: >-   # comment\n   a\n   bc", "bc", (2, 3, 2, 5)),
        ("k: |\n   a\n     bc\n", "bc", (2, 5, 2, 7)),
    ],
)
def test_pieces_of_a_scalar_know_their_places(text: str, piece: str, place: tuple[int, ...]) -> None:
    value = scalar(text)
    start = value.text.index(piece)

    span = value.place(start, start + len(piece))

    assert (span.line, span.column, span.end_line, span.end_column) == place


def test_an_alias_stands_for_its_anchor_and_keeps_its_place() -> None:
    root = read("a: &x [1]\nb: *x\n", "file.yaml").root

    assert isinstance(root, Mapping)
    assert root.get("b") is root.get("a")


def test_a_byte_order_mark_is_skipped() -> None:
    assert scalar("\ufeffkey: a").span.column == 5


def test_values_that_were_refused_do_not_hide_other_mistakes() -> None:
    assert codes("nlc: 1\nname: a\nparams: {r: !x 1, r: 2}\nflows: {y: 1 +}\n") == ["NLC013", "NLC011", "NLC150"]


def test_nothing_is_called_missing_where_a_key_was_refused() -> None:
    assert codes("<<: {nlc: 1}\nname: a\n") == ["NLC012"]


@pytest.mark.parametrize(
    "unit",
    ["[", "{a: ", "- ", "? ", "a: [", "[[", "a:\n" + " " * 3, "((", "!a ", "&a ", "*a ", "'", '"', "\t", "#", ": ", ", ", "é", "|", "%"],
)
def test_a_megabyte_of_anything_gives_a_quick_message(unit: str) -> None:
    text = unit * (MAX_CHARACTERS // len(unit))

    began = time.process_time()
    found = codes(text)

    assert time.process_time() - began < 5
    assert len(found) == 1


def test_a_text_above_the_limit_is_refused() -> None:
    assert codes("#" * (MAX_CHARACTERS + 1)) == ["NLC004"]


def test_many_mistakes_are_found_quickly_and_not_all_shown() -> None:
    text = "nlc: 1\nname: a\nflows:\n" + "".join(f"  f{i}: a +\n" for i in range(MAX_NODES // 3))

    began = time.process_time()
    with pytest.raises(SpecError) as caught:
        loads(text)

    assert time.process_time() - began < 10
    assert len(caught.value.diagnostics) == 40
    assert f"{MAX_NODES // 3 - 40} more mistakes are not shown" in str(caught.value)


def test_many_values_are_refused() -> None:
    assert codes(f"nlc: 1\nname: a\nflows: {{y: [{'1, ' * MAX_NODES}1]}}\n") == ["NLC016"]


@pytest.mark.parametrize("character", ["\0", "\x07", "\x1b", "\x7f", "\ud800", "\ufffe", "\x0c"])
def test_control_characters_are_refused(character: str) -> None:
    assert codes(f"nlc: 1\nname: a{character}\n") == ["NLC006"]


def test_a_control_character_is_pointed_at() -> None:
    with pytest.raises(SpecError) as caught:
        loads("nlc: 1\nname: a\0b\n")

    assert str(caught.value.diagnostics[0].span) == "<string>:2:8"


@pytest.mark.parametrize("case", sorted(ERRORS.glob("NLC0*/*.yaml")), ids=lambda case: f"{case.parent.name}-{case.stem}")
def test_the_python_parser_of_yaml_finds_the_same(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError) as fast:
        load(case)
    monkeypatch.delattr(yaml, "CSafeLoader")
    with pytest.raises(SpecError) as slow:
        load(case)

    assert [(p.code, p.message) for p in slow.value.diagnostics] == [(p.code, p.message) for p in fast.value.diagnostics]
