"""Pages of docs/, run as they stand: files are written, commands print what the page shows, Python code runs."""

import doctest
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=300, check=False)


@pytest.mark.parametrize(
    "page", ["adapt.md", "tutorial.md", "own_learner.md", "optimizers.md", "self_modifying.md", "keeps_learning.md", "views.md"]
)
def test_a_page_runs_as_it_stands(page: str, tmp_path: Path) -> None:
    kinds = []
    for kind, name, body in BLOCK.findall((DOCS / page).read_text(encoding="utf-8")):
        kinds.append(kind)
        if kind == "yaml":
            (tmp_path / name).write_text(body, encoding="utf-8")
        elif kind == "python":
            done = run(tmp_path, sys.executable, "-c", body)
            assert done.returncode == 0, f"{body}\n{done.stderr}"
        else:
            assert kind == "console", f"nothing runs a block of {kind}"
            for call in body.split("$ nlc ")[1:]:
                line, expected = call.split("\n", 1)
                done = run(tmp_path, sys.executable, "-m", "nlc", *shlex.split(line, comments=True))
                fails = expected.startswith("error") or "exit code 1" in line
                assert (done.returncode != 0) == fails, f"{line}\n{done.stderr}"
                wanted, printed = (f"{text.strip()}\n" for text in (expected, done.stdout + done.stderr))
                assert doctest.OutputChecker().check_output(wanted, printed, doctest.ELLIPSIS), f"{line} printed\n{printed}"
    assert {"yaml", "console"} <= set(kinds)
