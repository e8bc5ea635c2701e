"""Options and fixtures for all tests."""

from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-snapshots", action="store_true", help="rewrite the files that snapshot tests compare with")
    parser.addoption("--random-specs", type=int, default=400, metavar="N", help="how many random specs are compared with the reference")
    parser.addoption("--random-spec", metavar="CASE", help="run one random spec: its number, or `17; keep: exp; every: 4`")


@pytest.fixture
def snapshot(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """Compares a text with a file; with --update-snapshots, writes the file."""

    def compare(path: Path, text: str) -> None:
        if request.config.getoption("--update-snapshots"):
            path.write_text(text, encoding="utf-8")
        expected = path.read_text(encoding="utf-8") if path.exists() else ""

        assert text == expected, f"{path} differs; run with --update-snapshots and review the change"

    return compare
