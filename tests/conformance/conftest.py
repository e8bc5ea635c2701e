"""The coverage table of the random specs, after the test run."""

from __future__ import annotations

import pytest

from tests.conformance.random_specs import plan, table

RAN = pytest.StashKey[set[int]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    ran = config.stash.get(RAN, set())
    if ran:
        terminalreporter.section(f"options covered by {len(ran)} random specs")
        for line in table([plan()[number] for number in sorted(ran)]):
            terminalreporter.write_line(line)
