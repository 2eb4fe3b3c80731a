"""Says where the time of a run went, by file: `PYTEST_ADDOPTS="-p tests.support.file_times" make test`.

What a worker takes in seconds depends on what else the machine does; what the processors take does not. That includes the processes
that a test starts, except one that outlives its parent.
"""

from __future__ import annotations

import resource
import sys
from collections import Counter, defaultdict
from collections.abc import Generator

import pytest
from _pytest.terminal import TerminalReporter

_SHOWN = 25


def _processor_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class _Spent:
    """What this worker has taken and started since it was last asked."""

    def __init__(self) -> None:
        self._seconds = _processor_seconds()
        self._started = Counter[str]()
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "subprocess.Popen":
            command = str(arguments[1])
            self._started["processes"] += 1
            self._started["daemons"] += "shmserved" in command and "--state-dir" in command

    def __call__(self) -> dict[str, float]:
        before, self._seconds = self._seconds, _processor_seconds()
        started, self._started = self._started, Counter()
        return {"cpu_s": self._seconds - before, **started}


_spent = _Spent()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    _spent()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    report.user_properties = [*report.user_properties, ("spent", _spent())]
    return report


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    files = defaultdict[str, Counter[str]](Counter)
    slowest = dict[str, tuple[float, str]]()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                file, _, test = report.nodeid.partition("::")
                spent = dict(report.user_properties)["spent"]
                assert isinstance(spent, dict)
                files[file].update({"wall_s": report.duration, **spent})
                slowest[file] = max(slowest.get(file, (0.0, "")), (report.duration, test))
    total = Counter[str]()
    for found in files.values():
        total.update(found)
    terminalreporter.section("where the time of all workers went")
    terminalreporter.write_line("  worker s  processor s  daemons  processes  file  (longest test)")
    for file, found in [("in total", total), *sorted(files.items(), key=lambda item: -item[1]["cpu_s"])[:_SHOWN]]:
        longest = "" if file not in slowest else "  ({:.1f} s, {})".format(*slowest[file])
        figures = f"{found['wall_s']:10.1f} {found['cpu_s']:12.1f} {found['daemons']:8.0f} {found['processes']:10.0f}"
        terminalreporter.write_line(f"{figures}  {file}{longest}")
