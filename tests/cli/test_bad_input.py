"""Files that are no specs: one clear message each, the documented exit code, no traceback."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.running import SMALL, Ran, nlc, spec_file


def missing(folder: Path) -> Path:
    return folder / "absent.yaml"


def a_folder(folder: Path) -> Path:
    return folder


def empty(folder: Path) -> Path:
    return spec_file(folder, "")


def not_utf8(folder: Path) -> Path:
    path = folder / "latin.yaml"
    path.write_bytes(SMALL.replace("small", "größe").encode("latin-1"))
    return path


def brackets(folder: Path) -> Path:
    return spec_file(folder, "[" * 1_000_000)


def open_brackets_in_an_expression(folder: Path) -> Path:
    return spec_file(folder, SMALL.replace("o: S(q)", 'o: "S((q)"'))


def alias_bomb(folder: Path) -> Path:
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]
    return spec_file(folder, "\n".join(lines))


def foreign_tag(folder: Path) -> Path:
    return spec_file(folder, "nlc: !!python/object/apply:os.system [ls]")


def outside(folder: Path) -> Path:
    return spec_file(folder, SMALL + "uses: {x: ../../secret}\n")


def device(folder: Path) -> Path:
    return Path("/dev/null")


CASES: dict[Callable[[Path], Path], tuple[str, int]] = {
    missing: ("NLC001", 4),
    a_folder: ("NLC002", 4),
    device: ("NLC002", 4),
    empty: ("NLC007", 1),
    not_utf8: ("NLC005", 1),
    brackets: ("NLC", 1),
    open_brackets_in_an_expression: ("NLC", 1),
    alias_bomb: ("NLC016", 1),
    foreign_tag: ("NLC013", 1),
    outside: ("NLC131", 1),
}


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("command", ["check", "graph", "explain", "opt", "compile", "emit", "view"])
def test_bad_file_gives_a_message_and_its_exit_code(make: Callable[[Path], Path], command: str, tmp_path: Path) -> None:
    path = make(tmp_path)
    code, exit_code = CASES[make]
    out = ["-o", str(tmp_path / "out")]
    options = {"compile": out, "emit": ["--as", "python"], "view": out}.get(command, [])

    ran = nlc(command, path, *options)

    said = ran.out if command == "check" else ran.err
    assert ran.code == exit_code, said
    assert f"error[{code}" in said
    assert "Traceback" not in ran.out + ran.err
    assert not (tmp_path / "out").exists()


def test_misspelt_library_name_is_mended(tmp_path: Path) -> None:
    from tests.cli.running import OP

    ran: Ran = nlc("graph", OP[:-1] + "_" + OP[-1])

    assert ran.code == 4
    assert f"did you mean `{OP}`?" in ran.err


@pytest.mark.parametrize(
    "arguments", [["chek"], ["check"], ["graph", "x", "y"], ["emit", "x"], ["graph", "x", "--as", "png"], ["compile", "x"]]
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    ran = nlc(*arguments)

    assert ran.code == 2
    assert "Usage:" in ran.err
