"""What the daemon's log lines look like: plain on a terminal, with priorities under systemd."""

from __future__ import annotations

import logging
import os
import sys

# sd-daemon(3): a line's priority in angle brackets, which journald takes off again.
_PRIORITY = {"DEBUG": "<7>", "INFO": "<6>", "WARNING": "<4>", "ERROR": "<3>", "CRITICAL": "<2>"}


class _JournalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        priority = _PRIORITY.get(record.levelname, "<6>")
        # Every line of a traceback carries the priority: journald splits at newlines.
        return "\n".join(priority + line for line in super().format(record).splitlines())


def configure_logging(process: str) -> None:
    """Log to standard error; `process` names the supervisor or the engine in every line."""
    handler = logging.StreamHandler(sys.stderr)
    if "JOURNAL_STREAM" in os.environ:
        handler.setFormatter(_JournalFormatter(f"{process}: %(message)s"))
    else:
        handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)-7s {process}: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=os.environ.get("SHMSERVE_LOG_LEVEL", "INFO").upper(), handlers=[handler], force=True)
