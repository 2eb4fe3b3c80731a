"""Interface of a peer, and the common part of peers with a server process."""

from __future__ import annotations

import ctypes
import importlib.util
import multiprocessing
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from bench.workloads import Asked

from .leftovers import my_prefix

#: How to install the packages of the peers, in a checkout.
HOW_TO_GET = "make bench installs all, or pip install '.[bench]'"

Infer = Callable[[dict[str, Any]], dict[str, Any]]
Ready = Callable[[str], None]

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
PR_SET_PDEATHSIG = 1


class Peer(Protocol):
    """Way to query a model on the same host. An instance is pickled into its client processes."""

    name: str
    #: Variables of its client processes, beside those of the benchmark.
    environment: Mapping[str, str]

    def expect(self, asked: Asked) -> None:
        """Prepare for this workload, before `start`: a server with slots of fixed shapes needs them."""

    def start(self) -> None:
        """Start the server as a separate process; return when it accepts requests."""

    def connect(self) -> Infer:
        """Return `infer(observation) -> reply` of a new client; the reply's arrays belong to the caller."""

    def stop(self) -> None:
        """End the server and remove its files and objects; may be called twice, or before `start`."""

    def available(self) -> str | None:
        """Return None, or the reason why this peer cannot run here and the remedy."""

    def server_pids(self) -> list[int]:
        """Return the server's processes, to which their descendants belong; empty without a server."""


@runtime_checkable
class AnnouncingPeer(Protocol):
    """Peer whose client may say that a request follows, if it sends at a constant rate."""

    ahead_ns: int

    def connect_with_announcement(self) -> tuple[Infer, Callable[[], object]]:
        """Return `infer` of a new client, and the call that announces a request `ahead_ns` before it."""


def is_installed(package: str) -> bool:
    """Return whether it can be imported; find_spec raises for a part of a missing package.

    >>> is_installed("numpy"), is_installed("no_such_package"), is_installed("no_such_package.part")
    (True, False, False)
    """
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


class ServedPeer:
    """Peer whose server is `serve` below, in a new interpreter; it implements `Peer` except `connect`."""

    name: str
    environment: Mapping[str, str] = MappingProxyType({})
    packages: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.address = ""
        self._process: BaseProcess | None = None
        self._directory: Path | None = None

    def expect(self, asked: Asked) -> None:
        """Do nothing: these servers take any observation."""

    @staticmethod
    def serve(directory: Path, ready: Ready) -> None:
        """Serve the policy until SIGTERM.

        Calls `ready(address)` when it accepts requests; `directory` is private to the server and removed after it.
        """
        raise NotImplementedError

    def available(self) -> str | None:
        missing = [package for package in self.packages if not is_installed(package)]
        return f"not installed: {', '.join(missing)} ({HOW_TO_GET})" if missing else None

    def start(self) -> None:
        # A short path: a Unix socket's name has 107 bytes.
        self._directory = Path(tempfile.mkdtemp(prefix=my_prefix()))
        spawn = multiprocessing.get_context("spawn")
        answer, report = spawn.Pipe(duplex=False)
        self._process = spawn.Process(target=_serve, args=(self.serve, self._directory, report), name=self.name)
        self._process.start()
        report.close()
        if not answer.poll(START_TIMEOUT_S):
            self.stop()
            raise TimeoutError(f"{self.name}: the server was not ready after {START_TIMEOUT_S:.0f} s")
        try:
            self.address = answer.recv()
        except EOFError:
            self.stop()
            raise ConnectionError(f"{self.name}: the server ended before it was ready; see its output above") from None

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.join(STOP_TIMEOUT_S)
            if process.exitcode is None:
                process.kill()
                process.join()
        directory, self._directory = self._directory, None
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)

    def server_pids(self) -> list[int]:
        return [] if self._process is None or self._process.pid is None else [self._process.pid]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None, "_directory": None}


def end_with_parent() -> None:
    """End with the parent process, and ignore a Ctrl-C, which is for the parent."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _serve(serve: Callable[[Path, Ready], None], directory: Path, report: Connection) -> None:
    end_with_parent()
    serve(directory, report.send)


def terminate_by_exception() -> None:
    """Make SIGTERM raise SystemExit, for a server that must run its `finally` blocks."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
