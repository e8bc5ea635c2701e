"""Each wrong spec in `tests/errors/<CODE>/` gives the message in the `.expect` file beside it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nlc.diagnostics import SpecError
from nlc.language import load

HERE = Path(__file__).parent
CASES = sorted(HERE.glob("NLC*/*.yaml"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}-{case.stem}")
def test_wrong_spec_gives_the_expected_message(case: Path, snapshot: Callable[[Path, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(case.parent)

    with pytest.raises(SpecError) as caught:
        load(case.name)

    assert case.parent.name in {problem.code for problem in caught.value.diagnostics}
    snapshot(case.with_suffix(".expect"), f"exit code: {caught.value.exit_code}\n\n{caught.value.render()}\n")


def test_every_expected_message_belongs_to_a_spec() -> None:
    orphans = [path for path in HERE.glob("NLC*/*.expect") if not path.with_suffix(".yaml").exists()]

    assert orphans == []
