"""Connection to the admin socket of a service."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

from shmserve.directories import ADMIN_SOCKET, ServicePlace, service_place
from shmserve.errors import ForeignService, ServiceUnavailable
from shmserve.service_owner import connect_to_service, user_name
from shmserve.varlink_connection import VarlinkConnection

INTERFACE = "io.shmserve.Admin"


@final
class ReplyStream:
    """The replies of one call, and the descriptor that is readable when one has arrived."""

    def __init__(self, connection: VarlinkConnection, replies: Iterator[dict[str, Any]]) -> None:
        self._connection = connection
        self._replies = replies

    def fileno(self) -> int:
        return self._connection.fileno()

    def __next__(self) -> dict[str, Any]:
        return next(self._replies)


@final
class AdminConnection:
    """Calls io.shmserve.Admin of one service.

    Raises ServiceUnavailable without a daemon, ForeignService for another user's that the caller did not name.
    """

    def __init__(
        self, name: str, runtime_dir: str | os.PathLike[str] | None, *, place: ServicePlace | None = None
    ) -> None:
        """`place`: where the service was found, in place of where its name leads."""
        self.name = name
        self._place = place or service_place(name, runtime_dir)
        self.path: Path = self._place.directory / ADMIN_SOCKET
        self._connection: VarlinkConnection | None = None

    def open(self, timeout_s: float = 5.0) -> AdminConnection:
        try:
            self._connection, _ = connect_to_service(self._place, ADMIN_SOCKET, timeout_s, how="--runtime-dir")
        except ForeignService:
            raise
        except (FileNotFoundError, ConnectionError) as error:
            raise ServiceUnavailable(
                f"no daemon serves {self.name!r} at {self.path}: start one (shmserved --model-path DIR --name "
                f"{self.name}), or say where it is (--runtime-dir or SHMSERVE_RUNTIME_DIR)"
            ) from error
        except PermissionError as error:
            raise PermissionError(
                f"{self.path} may not be opened by uid {os.getuid()}: run as the daemon's user or as root. To look only, it is "
                "enough to be a member of the service's group, where that serves its group (usermod -aG shmserve USER)"
            ) from error
        return self

    def call(
        self, method: str, parameters: dict[str, Any] | None = None, *, timeout_s: float | None = 10.0, fd: int = -1
    ) -> dict[str, Any]:
        """Call a method; raises VarlinkError for a typed refusal, ServiceUnavailable when the daemon goes away."""
        assert self._connection is not None
        try:
            return self._connection.call(
                f"{INTERFACE}.{method}", parameters, timeout_s=timeout_s, fds=(fd,) if fd >= 0 else ()
            ).parameters
        except ConnectionError as error:
            raise ServiceUnavailable(
                f"the daemon of {self.name!r} closed the connection: it ended, see its log for the cause. After its "
                f"restart: shmserve-admin --name {self.name} status"
            ) from error

    def call_more(
        self, method: str, parameters: dict[str, Any], *, timeout_s: float | None = None, fd: int = -1
    ) -> Iterator[dict[str, Any]]:
        """Yield the replies of a method that reports progress; raises as `call`."""
        assert self._connection is not None
        try:
            for reply in self._connection.call_more(
                f"{INTERFACE}.{method}", parameters, timeout_s=timeout_s, fds=(fd,) if fd >= 0 else ()
            ):
                yield reply.parameters
        except ConnectionError as error:
            raise ServiceUnavailable(
                f"the daemon of {self.name!r} closed the connection: it ended, see its log for the cause. After its "
                f"restart: shmserve-admin --name {self.name} status"
            ) from error

    def status(self) -> dict[str, Any]:
        """Return the daemon's status, and the users to whom the kernel says its process and its directory belong.

        `uid` and `user` are those of the listening process: under socket activation root, until the daemon has started.
        """
        assert self._connection is not None
        status: dict[str, Any] = self.call("Status")["status"]
        uid, runtime_dir = self._connection.peer_uid(), self.path.parent.parent
        owner = runtime_dir.stat().st_uid
        return {
            **status,
            "uid": uid,
            "user": user_name(uid),
            "runtime_dir": str(runtime_dir),
            "runtime_dir_uid": owner,
            "runtime_dir_user": user_name(owner),
        }

    def reply_stream(self, replies: Iterator[dict[str, Any]]) -> ReplyStream:
        """Wrap the replies for select(2)."""
        assert self._connection is not None
        return ReplyStream(self._connection, replies)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> AdminConnection:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()
