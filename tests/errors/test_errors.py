"""`nlc check` of each wrong spec in `tests/errors/<CODE>/` gives the message in the `.expect` file beside it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nlc.cli.app import app

HERE = Path(__file__).parent
CASES = sorted(HERE.glob("NLC*/*.yaml"))
RUNNER = CliRunner()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}-{case.stem}")
def test_wrong_spec_gives_the_expected_message(case: Path, snapshot: Callable[[Path, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(case.parent)

    result = RUNNER.invoke(app, ["check", case.name])

    assert f"[{case.parent.name}]:" in result.stdout
    snapshot(case.with_suffix(".expect"), f"exit code: {result.exit_code}\n\n{result.stdout}")


def test_every_expected_message_belongs_to_a_spec() -> None:
    orphans = [path for path in HERE.glob("NLC*/*.expect") if not path.with_suffix(".yaml").exists()]

    assert orphans == []


def test_every_code_of_a_spec_has_a_folder() -> None:
    from nlc.cli.explaining import known_codes

    spec_codes = {code for code in known_codes() if "NLC007" <= code <= "NLC699"}

    assert spec_codes - {case.parent.name for case in CASES} == set()
