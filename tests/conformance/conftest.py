"""Random specs: which of them are run, how far a run is, and the table of what they cover."""

from __future__ import annotations

import pytest

from tests.conformance.options import plan, table

RAN = "random specs"
"""The property of a test report that holds the numbers of the specs that agreed."""
EVERY = 1000


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Progress(config), "progress of random specs")


class Progress:
    """Collects the reports of this process or, in a parallel run, of all of them."""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.ran = config, set[int]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        before = len(self.ran)
        for name, numbers in report.user_properties if report.when == "call" else ():
            if name == RAN:
                self.ran.update(numbers)  # type: ignore[arg-type]
        writer = self.config.pluginmanager.get_plugin("terminalreporter")
        if writer is not None and len(self.ran) // EVERY > before // EVERY:
            writer.write_line(f"\n{len(self.ran)} of {self.config.getoption('--random-specs')} random specs agree")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.ran:
            terminalreporter.section(f"options covered by {len(self.ran)} random specs")
            for line in table([plan()[number] for number in sorted(self.ran)]):
                terminalreporter.write_line(line)
