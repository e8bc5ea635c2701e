"""The coverage table of the random specs, after the test run."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.options import plan, table

RAN = pytest.StashKey[set[int]]()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of a run in parallel hands over which specs it ran."""
    if hasattr(session.config, "workeroutput"):
        ran: set[int] = session.config.stash.get(RAN, set())
        session.config.workeroutput["random specs"] = sorted(ran)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """The process that started the others collects them."""
    collected: set[int] = node.config.stash.setdefault(RAN, set())
    collected.update(getattr(node, "workeroutput", {}).get("random specs", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    ran = config.stash.get(RAN, set())
    if ran:
        terminalreporter.section(f"options covered by {len(ran)} random specs")
        for line in table([plan()[number] for number in sorted(ran)]):
            terminalreporter.write_line(line)
