"""Says where the minutes of a run went, by file: `PYTEST_ADDOPTS="-p tests.support.file_times" make test`."""

from __future__ import annotations

from collections import defaultdict

import pytest
from _pytest.terminal import TerminalReporter

_SHOWN = 25


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    seconds, slowest = defaultdict[str, float](float), dict[str, tuple[float, str]]()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                file, _, test = report.nodeid.partition("::")
                seconds[file] += report.duration
                slowest[file] = max(slowest.get(file, (0.0, "")), (report.duration, test))
    terminalreporter.section(f"where {sum(seconds.values()):.0f} s of all workers together went")
    for file, spent in sorted(seconds.items(), key=lambda item: -item[1])[:_SHOWN]:
        longest, test = slowest[file]
        terminalreporter.write_line(f"{spent:7.1f} s  {file}  (longest: {longest:.1f} s, {test})")
