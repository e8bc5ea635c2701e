"""Every message of the front end can be explained."""

import re
from pathlib import Path

import pytest

import nlc.language
from nlc.diagnostics import CODES, Diagnostic

HERE = Path(__file__).parent
OURS = {code: kind for code, kind in sorted(CODES.items()) if kind.__module__.startswith("nlc.language.")}
ALL = pytest.mark.parametrize("kind", OURS.values(), ids=OURS.keys())


def test_the_front_end_names_what_it_offers() -> None:
    assert nlc.language.__all__ == ["Library", "Spec", "load", "loads"]


@ALL
def test_the_docstring_has_the_fixed_parts(kind: type[Diagnostic]) -> None:
    summary, _, rest = (kind.__doc__ or "").partition("\n\n")

    assert summary.endswith(".") and "\n" not in summary
    assert re.fullmatch(r"    Why: .+\n    Wrong:  .+\n    Right:  .+\n    ", rest)


@ALL
def test_the_code_is_in_the_range_of_the_front_end(kind: type[Diagnostic]) -> None:
    is_syntax = kind.__module__.endswith((".parser", ".tokens"))

    assert re.fullmatch(r"NLC[01]\d\d", kind.code)
    assert (kind.code >= "NLC150") == is_syntax


@ALL
def test_each_code_has_a_test(kind: type[Diagnostic]) -> None:
    made_in_tests = "".join(path.read_text() for path in HERE.glob("test_*.py"))

    assert list((HERE.parent / "errors" / kind.code).glob("*.yaml")) or f'"{kind.code}"' in made_in_tests
