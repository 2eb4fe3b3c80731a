"""Makes the tests run alike wherever they are started: variables, temporary folder, file mode, chance."""

from __future__ import annotations

import importlib.util
import os
import signal
import tempfile

#: What would change what a program prints, where it looks, or whom it obeys: a terminal's, Python's, make's, git's (a hook
#: sets them), systemd's and this project's own.
_AWAY = (
    *("CLICOLOR", "COLORTERM", "COLUMNS", "FORCE_COLOR", "GIT_", "GZIP", "INVOCATION_ID", "JOURNAL_STREAM", "LC_"),
    *("LINES", "LISTEN_", "MAKE", "MFLAGS", "NOTIFY_SOCKET", "NO_COLOR", "PYTHON", "RUNTIME_DIRECTORY", "SHMSERVE_"),
    *("STATE_DIRECTORY", "TAR_OPTIONS", "TERM", "WATCHDOG_", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"),
)
#: Where the modules are, and what asks the tests for another form of themselves.
_KEPT = (
    "COVERAGE_",
    "PYTHONHOME",
    "PYTHONPATH",
    "SHMSERVE_HOSTILE_",
    "SHMSERVE_OPENPI_",
    "SHMSERVE_PURE",
    "SHMSERVE_TEST_",
)
#: The path of a Unix socket has room for 107 bytes, and the folder that pytest gives a test takes 75 below this one.
_LONGEST_SCRATCH = len("/var/tmp")


def settle() -> None:
    """For this process and all that it starts."""
    for name in [name for name in os.environ if name.startswith(_AWAY) and not name.startswith(_KEPT)]:
        del os.environ[name]
    os.environ["LANG"] = "C.UTF-8"
    os.umask(0o022)
    if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_SCRATCH and os.access("/tmp", os.W_OK | os.X_OK):
        os.environ["TMPDIR"] = "/tmp"
        tempfile.tempdir = None
    # A shell that runs the tests in its background has them ignore Ctrl-C, and so would every program they start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if importlib.util.find_spec("hypothesis") is None:  # a bare machine with a GPU (`make test-gpu`)
        return
    from hypothesis import HealthCheck, settings

    # The same examples every time, however slow the machine; `make fuzz` looks for others.
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    settings.register_profile("shmserve", deadline=None, derandomize=True, database=None, suppress_health_check=slow)
    settings.load_profile("shmserve")
