"""What only a process of its own shows: imports, time, pipes, signals, bugs."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.running import MODEL, OP, ROOT, SMALL, WRONG, nlc, nlc_process, spec_file

REPORT_TORCH = """
import sys
from nlc.cli import main
try:
    main()
finally:
    loaded = [name for name in ("torch", "rich", "pydantic", "networkx") if name in sys.modules]
    print("loaded:", *loaded, file=sys.stderr)
"""
RAISE = """
import nlc.cli.inspecting as inspecting
def broken(*_): raise {error}
inspecting.build_graph = broken
from nlc.cli import main
main()
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["check", OP, MODEL],
        ["graph", MODEL, "--as", "svg"],
        ["graph", MODEL, "--as", "dot", "--select", "logits+"],
        ["graph", MODEL, "--raster", "8"],
        ["diff", OP, OP],
        ["diff", OP, OP, "--as", "source"],
        ["explain", MODEL],
        ["explain", "NLC702"],
        ["explain", "choose-form"],
        ["opt", OP],
        ["emit", MODEL, "--as", "python"],
        ["view", "--help"],
        ["passes"],
        ["schema"],
        ["list"],
        ["train", "--help"],
    ],
    ids=" ".join,
)
def test_command_does_not_import_torch(arguments: list[str]) -> None:
    ran = nlc_process(*arguments, code=REPORT_TORCH)

    assert ran.code == 0, ran.err
    loaded = ran.err.splitlines()[-1].split()
    assert loaded[0] == "loaded:"
    assert "torch" not in loaded
    if arguments == ["--help"]:
        assert loaded == ["loaded:"]


def test_report_does_not_import_torch(tmp_path: Path) -> None:
    ran = nlc_process("view", MODEL, "-o", tmp_path / "report.html", code=REPORT_TORCH)

    assert ran.code == 0, ran.err
    assert "torch" not in ran.err.splitlines()[-1].split()


def test_module_is_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "nlc", "passes"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0
    assert "choose-form" in done.stdout


@pytest.mark.parametrize(
    "command", ["check", "graph", "explain", "opt", "compile", "emit", "export", "view", "train", "sample", "passes", "list", "schema"]
)
def test_help_of_each_command_has_an_example(command: str) -> None:
    ran = nlc(command, "--help")

    assert ran.code == 0
    assert f"Example: nlc {command}" in ran.out


def test_results_and_messages_use_their_own_streams(tmp_path: Path) -> None:
    fine = nlc_process("graph", spec_file(tmp_path))
    wrong = nlc_process("graph", spec_file(tmp_path, WRONG, "wrong.yaml"))

    assert (fine.code, fine.err) == (0, "")
    assert (wrong.code, wrong.out) == (1, "")


def test_broken_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m nlc graph {MODEL} | head -c 10"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) == 10


def test_bug_is_one_line_and_a_traceback_only_with_debug(tmp_path: Path) -> None:
    code, spec = RAISE.format(error="KeyError('lost')"), spec_file(tmp_path)

    ran, debugged = nlc_process("graph", spec, code=code), nlc_process("graph", spec, "--debug", code=code)

    assert (ran.code, debugged.code) == (70, 70)
    assert len(ran.err.splitlines()) == 1
    assert "KeyError: 'lost'" in ran.err
    assert "--debug" in ran.err
    assert "Traceback" in debugged.err


def test_internal_error_is_a_bug(tmp_path: Path) -> None:
    code = RAISE.format(error="__import__('nlc.diagnostics').diagnostics.InternalError('the graph breaks a rule')")

    ran = nlc_process("graph", spec_file(tmp_path), code=code)

    assert ran.code == 70
    assert ran.err.startswith("error: the graph breaks a rule: this is a bug of nlc")


def test_interrupt_is_exit_code_130(tmp_path: Path) -> None:
    ran = nlc_process("graph", spec_file(tmp_path), code=RAISE.format(error="KeyboardInterrupt"))

    assert ran.code == 130
    assert "Traceback" not in ran.err


def test_interrupt_while_a_command_starts_is_quiet() -> None:
    wait = "print('ready', flush=True); time.sleep(60)"
    code = f"import time, nlc.cli.app\ndef wait(): {wait}\nnlc.cli.app.app = wait\nnlc.cli.app.run()"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background of a shell ignores it
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)

    assert (process.returncode, err) == (130, "")


@pytest.mark.parametrize(("option", "colored"), [("always", True), ("never", False), ("auto", False)])
def test_color_is_an_option(option: str, colored: bool, tmp_path: Path) -> None:
    ran = nlc("check", spec_file(tmp_path, WRONG), "--color", option)

    assert ("\033[" in ran.out) is colored
    assert "NLC201" in ran.out


def test_no_color_is_respected_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from nlc.cli.session import Color, Session

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    colored = Session(False, Color.auto).painted("error[NLC201]: x", Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Session(False, Color.auto).painted("error[NLC201]: x", Terminal())

    assert (colored != plain, plain) == (True, "error[NLC201]: x")


def test_package_names_stay_visible() -> None:
    import nlc as package

    assert set(package.__all__) <= set(dir(package))
    assert callable(package.compile)
    assert SMALL
    with pytest.raises(AttributeError, match="has no attribute `nothing`"):
        package.nothing  # noqa: B018
