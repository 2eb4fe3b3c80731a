"""One process's part in the iceoryx2 services of one server, separate from those of other users."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .out_of_band import ALIGNMENT

MOST_CLIENTS = 32  # The defaults are 8 and 16.
FIRST_SLICE_BYTES = 1 << 16
WAIT_MS = 100  # Limit of a wait, so that SIGTERM is handled.


class Node:
    """Node with its files in `directory`, whose objects in /dev/shm begin with its name."""

    def __init__(self, directory: str) -> None:
        import iceoryx2

        self._iceoryx2 = iceoryx2
        iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
        config = iceoryx2.config.default()
        config.global_cfg.root_path = iceoryx2.Path.new(directory)
        config.global_cfg.prefix = iceoryx2.FileName.new(prefix(directory))
        builder = iceoryx2.NodeBuilder.new().config(config)
        builder = builder.signal_handling_mode(iceoryx2.SignalHandlingMode.Disabled)
        self._node = builder.create(iceoryx2.ServiceType.Ipc)

    def _builder(self, name: str) -> Any:
        return self._node.service_builder(self._iceoryx2.ServiceName.new(name))

    def requests(self) -> Any:
        of_bytes: Any = self._iceoryx2.Slice[ctypes.c_uint8]
        service = self._builder("infer").request_response(of_bytes, of_bytes)
        alignment = self._iceoryx2.Alignment.new(ALIGNMENT)
        service = service.request_payload_alignment(alignment).response_payload_alignment(alignment)
        return service.max_clients(MOST_CLIENTS).max_nodes(MOST_CLIENTS).open_or_create()

    def growing(self, port_builder: Any) -> Any:
        strategy = self._iceoryx2.AllocationStrategy.PowerOfTwo
        return port_builder.initial_max_slice_len(FIRST_SLICE_BYTES).allocation_strategy(strategy).create()

    def _event(self, name: str) -> Any:
        return self._builder(name).event().max_notifiers(MOST_CLIENTS).max_nodes(MOST_CLIENTS).open_or_create()

    def notifier(self, name: str) -> Any:
        return self._event(name).notifier_builder().create()

    def waiting(self, name: str) -> Callable[[], object]:
        listener = self._event(name).listener_builder().create()
        timeout = self._iceoryx2.Duration.from_millis(WAIT_MS)
        return lambda: listener.timed_wait(timeout)


def prefix(directory: str) -> str:
    """Return the prefix of the names of a server's objects in /dev/shm."""
    return f"{Path(directory).name}_"
