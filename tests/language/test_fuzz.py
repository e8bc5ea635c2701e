"""Whatever the text, it is a spec or a SpecError, and soon."""

import random
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nlc.diagnostics import SpecError
from nlc.language import Library, loads
from nlc.language.spec import Spec

FILES = [path.read_text() for path in sorted((Path(__file__).parents[2] / "specs").glob("*/*.yaml"))]
LIBRARY = Library()
PIECES = [
    *(
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        ",",
        ":",
        ": ",
        "- ",
        "\n",
        "\n  ",
        " ",
        "#",
        "&a ",
        "*a",
        "!t ",
        "<<: ",
        "'",
        '"',
        "|\n",
        "->",
        "\t",
        "\0",
        "%",
        "? ",
    ),
    *(
        "nlc: 1",
        "name",
        "use: box",
        "learn",
        "every",
        "tokens",
        "0",
        "-1",
        "1e999",
        ".nan",
        "true",
        "null",
        "~",
        "x" * 50,
        "é",
        "\u2028",
        "\x85",
        "^",
        ".",
    ),
]
SECONDS = 2.0


def outcome(text: str) -> Spec | SpecError:
    """Any other exception fails the test."""
    began = time.process_time()
    result: Spec | SpecError
    try:
        result = loads(text, library=LIBRARY)
    except SpecError as error:
        result = error
    taken = time.process_time() - began

    assert taken < SECONDS
    if isinstance(result, SpecError):
        assert result.diagnostics and str(result)
        assert all(p.message and p.span.file and p.to_json() for p in result.diagnostics)
    return result


@given(st.text(max_size=300))
def test_any_text(text: str) -> None:
    outcome(text)


@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
def test_pieces_of_yaml(text: str) -> None:
    outcome(text)


@given(st.lists(st.sampled_from(PIECES), max_size=20).map("".join))
def test_pieces_of_yaml_in_a_spec(text: str) -> None:
    outcome(f"nlc: 1\nname: a\nflows:\n  y: {text}\n")


@settings(max_examples=400)
@given(st.sampled_from(FILES), st.data())
def test_changed_files_of_the_library(text: str, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 12)))
        text = text[:start] + data.draw(st.sampled_from(["", *PIECES])) + text[end:]
    outcome(text)


@settings(max_examples=300)
@given(st.sampled_from(FILES), st.randoms(use_true_random=False))
def test_files_with_moved_values(text: str, maker: random.Random) -> None:
    """Valid YAML of the wrong form: values of the library in places where others belong."""
    tree = yaml.safe_load(text)
    parts: list[tuple[dict[str, object], str]] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            parts.extend((node, key) for key in node)
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
    odd: list[object] = [None, True, 0, -1, 1.5, "", "x y", [], {}, [[]], {"a": {}}, {"a": None, "b": 1}, {"params": {}}, {"use": "box"}]
    for _ in range(maker.randint(1, 3)):
        holder, key = maker.choice(parts)
        other, name = maker.choice(parts)
        holder[maker.choice([key, name, "zzz"])] = maker.choice([*odd, yaml.safe_load(yaml.safe_dump(other.get(name)))])
    outcome(yaml.safe_dump(tree, default_flow_style=maker.choice([True, False, None])))


@pytest.mark.parametrize("text", FILES, ids=lambda text: text.split("name: ")[1].split("\n")[0])
def test_cut_files(text: str) -> None:
    for end in range(0, len(text), 3):
        outcome(text[:end])


def test_a_deep_spec_at_all_limits_at_once() -> None:
    expr = "f(" * 60 + "x" + ")" * 60
    deep = "{f: {a: " * 28 + f"'{expr}'" + "}}" * 28

    result = outcome(f"nlc: 1\nname: a\nflows: {{y: {deep}}}\n")

    assert isinstance(result, Spec)
