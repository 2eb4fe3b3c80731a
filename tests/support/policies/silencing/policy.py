"""Sets logging up in every way that libraries do, and then raises."""

import io
import logging
import logging.config
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch


def _refuse(*_: Any, **__: Any) -> Any:
    raise SystemExit("no record")


class _Silent(logging.Logger):
    def handle(self, record: logging.LogRecord) -> None:
        pass


def _no_handlers() -> None:
    for name in [None, *logging.root.manager.loggerDict]:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.CRITICAL + 1)
        logger.propagate = False
        logger.disabled = True


def _file() -> None:
    logging.config.fileConfig(
        io.StringIO("[loggers]\nkeys=root\n[handlers]\nkeys=\n[formatters]\nkeys=\n[logger_root]\nhandlers=\n")
    )


def _closed() -> None:
    sys.stderr.close()
    sys.stderr = sys.stdout = io.StringIO()


WAYS: dict[str, Any] = {
    "dictConfig": lambda: logging.config.dictConfig({"version": 1}),
    "fileConfig": _file,
    "disable": lambda: logging.disable(logging.CRITICAL),
    "basicConfig": lambda: logging.basicConfig(level=logging.CRITICAL, handlers=[logging.NullHandler()], force=True),
    "no handlers": _no_handlers,
    "shutdown": logging.shutdown,
    "logger class": lambda: logging.setLoggerClass(_Silent),
    "record factory": lambda: logging.setLogRecordFactory(_refuse),
    "level names": lambda: logging.addLevelName(logging.ERROR, "\x1b[31mE\x1b[0m"),
    "quiet": lambda: setattr(logging, "raiseExceptions", False),
    "warnings": lambda: warnings.simplefilter("error"),
    "much output": lambda: print("much " * 1_000_000),
    "standard error closed": _closed,
    "descriptor closed": lambda: os.close(2),
}


class Policy:
    def __init__(self, path: Path, device: torch.device) -> None:
        pass

    def infer(self, observation: dict[str, Any]) -> Any:
        way = observation["way"]
        logging.getLogger("policy").warning("the policy's own line")
        WAYS[way]()
        raise ValueError(f"after {way}\n12:00:00 ERROR   shmserved: not a line of the log")
