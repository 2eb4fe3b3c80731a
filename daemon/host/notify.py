"""Notifications to systemd: sd_notify(3), one datagram of KEY=VALUE lines."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping

log = logging.getLogger(__name__)


class Notifier:
    """`sd_notify` does nothing without a service manager."""

    def __init__(self, address: str | None = None, watchdog_s: float | None = None) -> None:
        """`address` is a path, or an abstract name that begins with @."""
        self._address = address
        #: The manager expects WATCHDOG=1 at least at this interval; None: it does not.
        self.watchdog_s = watchdog_s
        self._warned = False

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Notifier:
        """Take systemd's variables out of `environment`, so that no engine can notify for the service."""
        address = environment.pop("NOTIFY_SOCKET", None)
        watchdog_us = environment.pop("WATCHDOG_USEC", "")
        for_pid = environment.pop("WATCHDOG_PID", "") or str(os.getpid())
        if address is None or not watchdog_us.isdigit() or int(watchdog_us) == 0 or for_pid != str(os.getpid()):
            return cls(address)
        return cls(address, int(watchdog_us) / 1e6)

    def sd_notify(self, **fields: str | int) -> bool:
        """Send the fields, as in `sd_notify(READY=1, STATUS="serving")`; return False if the manager did not get them.

        Never waits: a manager that does not read (its queue holds ten messages or so) gets the next one later.
        """
        if self._address is None:
            return True
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        lines = "".join(f"{key}={str(value).translate(_ONE_LINE)}\n" for key, value in fields.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto(lines.encode("utf-8", "replace"), address)
        except BlockingIOError:
            return False
        except OSError as error:
            if not self._warned:
                log.warning("systemd cannot be notified at %s: %s", self._address, error.strerror or error)
                self._warned = True
            return False
        return True


_ONE_LINE = str.maketrans("\n\r", "  ")
