"""The command in the first line of each spec in `tests/passes/<pass>/` prints the `.expect` file beside it."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nlc.cli.app import app
from nlc.passmanager import DEFAULT, REGISTRY

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CASES = sorted(HERE.glob("*/*.yaml"))
RUNNER = CliRunner()


def arguments(case: Path) -> list[str]:
    """The arguments of the command in the first line; `%s` is the spec, as a path from the repository's root."""
    first = case.read_text(encoding="utf-8").splitlines()[0]
    program, *rest = shlex.split(first.removeprefix("# RUN: "))
    assert program == "nlc"
    return [str(case.relative_to(ROOT)) if word == "%s" else word for word in rest]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}-{case.stem}")
def test_pass_prints_the_expected_graph(case: Path, snapshot: Callable[[Path, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    result = RUNNER.invoke(app, arguments(case))

    assert result.exit_code == 0, result.output
    snapshot(case.with_suffix(".expect"), result.stdout)


def test_the_pipeline_holds_every_pass() -> None:
    assert sorted(DEFAULT) == sorted(REGISTRY)


@pytest.mark.parametrize("name", DEFAULT)
def test_pass_has_a_case_where_it_fires_and_one_where_it_does_not(name: str) -> None:
    texts = [path.read_text(encoding="utf-8") for path in (HERE / name).glob("*.expect")]
    unchanged = [f"# after {name}: unchanged" in text for text in texts]

    assert len(texts) >= 3
    assert set(unchanged) == {True, False}


def test_every_expected_graph_belongs_to_a_spec() -> None:
    assert [path for path in HERE.glob("*/*.expect") if not path.with_suffix(".yaml").exists()] == []
