"""WebsocketClientPolicy: openpi's client by name and signature, over shared memory.

Before: `from openpi_client.websocket_client_policy import WebsocketClientPolicy`
After:  `from shmserve.client.compat.openpi import WebsocketClientPolicy`
"""

from __future__ import annotations

import logging
import math
import os
import time
from typing import TYPE_CHECKING, Any

from shmserve.errors import ServiceUnavailable, ShmServeError

from ..arguments import seconds
from ..pending import Reply
from .drop_in import DropInClient

if TYPE_CHECKING:

    class _BasePolicy:
        pass

else:
    # A BasePolicy where openpi_client is there to ask for one; never a requirement (it wants numpy below 2).
    try:
        from openpi_client.base_policy import BasePolicy as _BasePolicy
    except ImportError:

        class _BasePolicy:
            pass


log = logging.getLogger(__name__)

_LOG_EVERY_S = 5.0


class WebsocketClientPolicy(DropInClient, _BasePolicy):
    """Client of a service of this host; a `BasePolicy` of openpi_client where that is installed.

    `host` is `shm://NAME` or `unix:DIRECTORY/NAME`; a network host and `port` are accepted and mean service
    "default". `api_key` is not used: the permissions of the socket decide about access. As openpi's, it waits until
    the service is available and has a model; with `connect_timeout` (seconds) it raises ServiceUnavailable instead.
    `timeout` (seconds) is for each `infer` and `reset`, which wait out a restart of the daemon within it.
    """

    def __init__(
        self,
        host: str = "0.0.0.0",
        port: int | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 60.0,
        connect_timeout: float | None = None,
        runtime_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        timeout = seconds("timeout", timeout)
        if connect_timeout is not None:
            connect_timeout = seconds("connect_timeout", connect_timeout)
        super().__init__(host, port, timeout, runtime_dir)
        self._previous_total_ms: float | None = None
        try:
            self._server_metadata = self._wait_for_server(connect_timeout)
        except BaseException:
            self._client.close()
            raise

    def get_server_metadata(self) -> dict[str, Any]:
        """Return the policy's metadata at the time of the constructor, and under "shmserve" its service and model."""
        return self._server_metadata

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        """Return the policy's result for `obs`, arrays owned and writable, with openpi's `server_timing` and `policy_timing`.

        Raises RuntimeError, its cause the typed error; the next call works.
        """
        try:
            reply = self._client.request(obs)
        except ShmServeError as error:
            raise RuntimeError(f"Error in inference server:\n{error}") from error
        if type(reply.action) is not dict:
            raise RuntimeError(
                f"Error in inference server:\n{self._address} answered with {type(reply.action).__name__}, not with a dict: "
                "it serves a policy that is not one of openpi's"
            )
        return self._with_timing(reply)

    def reset(self) -> None:
        """Reset the policy for a new episode (openpi's own client does not); no effect on a policy without reset."""
        try:
            self._client.reset()
        except ShmServeError as error:
            raise RuntimeError(f"Error in inference server:\n{error}") from error

    def _wait_for_server(self, connect_timeout: float | None) -> dict[str, Any]:
        log.info("Waiting for server at %s...", self._address)
        logged = time.monotonic()

        def log_outage(error: ServiceUnavailable) -> None:
            nonlocal logged
            if time.monotonic() - logged >= _LOG_EVERY_S:
                log.warning("Still waiting for server at %s: %s", self._address, error)
                logged = time.monotonic()

        deadline_ns = math.inf if connect_timeout is None else time.monotonic_ns() + connect_timeout * 1e9
        model = self._await_model(deadline_ns, log_outage)
        identity = {"service": self._address.service, "model": model["name"], "version": model["version"]}
        return {**model["metadata"], "shmserve": identity}

    def _with_timing(self, reply: Reply) -> dict[str, Any]:
        # openpi's ActionChunkBroker cuts a row out of every array there is: only plain numbers and text are added.
        result: dict[str, Any] = reply.action
        stages = reply.timing
        infer_ms = stages.infer_us / 1e3
        timing = {"infer_ms": infer_ms}
        if self._previous_total_ms is not None:
            timing["prev_total_ms"] = self._previous_total_ms
        self._previous_total_ms = (stages.queued_us + stages.staged_us + stages.infer_us + stages.copied_us) / 1e3
        result["server_timing"] = timing
        own = result.get("policy_timing")
        result["policy_timing"] = (
            {key: float(value) for key, value in own.items()} if isinstance(own, dict) else {"infer_ms": infer_ms}
        )
        result.setdefault(
            "shmserve",
            {
                "model_version": reply.model_version,
                "number": reply.request_id,
                "queued_ms": stages.queued_us / 1e3,
                "round_trip_ms": stages.round_trip_us / 1e3,
            },
        )
        return result
