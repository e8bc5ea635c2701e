"""new: a spec to start from; and what the shell completes."""

from pathlib import Path

import pytest

import nlc as package
from nlc.cli.specs import complete_spec
from tests.cli.running import OP, nlc


def test_new_writes_a_spec_that_compiles(tmp_path: Path) -> None:
    path = tmp_path / "idea.yaml"

    ran = nlc("new", "idea", "-o", path)

    assert (ran.code, ran.out) == (0, f"{path}\n")
    assert nlc("check", path).code == 0
    assert package.load(path).name == "idea"
    assert set(package.compile(path, backend="eager").initial_state(1)) == {"S"}


def test_new_keeps_a_file_that_exists(tmp_path: Path) -> None:
    path = tmp_path / "idea.yaml"
    path.write_text("mine", encoding="utf-8")

    refused = nlc("new", "idea", "-o", path)

    assert refused.code == 4
    assert "error[NLC803]" in refused.err
    assert path.read_text(encoding="utf-8") == "mine"
    assert nlc("new", "idea", "-o", path, "--force").code == 0
    assert "name: idea" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["a b", "2nd", "total", "../up", ""])
def test_new_refuses_what_is_no_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    ran = nlc("new", name)

    assert ran.code == 2
    assert list(tmp_path.iterdir()) == []


def test_the_shell_completes_names_of_the_library_and_spec_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "more").mkdir()
    (tmp_path / "map.txt").touch()

    assert OP in complete_spec(OP[:-1])
    assert [name for name in complete_spec("m") if not name.startswith("models/")] == ["mine.yaml", "more/"]
    assert complete_spec("absent/x") == []
