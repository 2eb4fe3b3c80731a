"""The engine's mapping of one generation of a client's channel, prefaulted in pieces.

Prefaulting it all at once would delay the requests of other clients by milliseconds, because the kernel clears new
pages.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import posix_ipc
import torch

from shmserve.channel import ChannelInfo, EngineChannel
from shmserve.layout import Geometry
from shmserve.schema import Schema


class InPlacePayload(Protocol):
    """One slot's payload, for a policy that reads it where it is."""

    def observation(self, schema: Schema, payload: npt.NDArray[np.uint8], payload_bytes: int) -> Any:
        """Return the tree of the slot's payload, its arrays as tensors over this memory; raises MetadataError."""

    @property
    def is_kept(self) -> bool:
        """Whether the policy keeps a tensor of an observation."""


class RegisteredRequests(Protocol):
    """One generation of a client's requests, as memory that a device reads directly."""

    def payload(self, sequence: int) -> torch.Tensor | None:
        """Return the payload bytes of the slot that `sequence` uses; None while the device cannot read them."""

    def in_place(self, sequence: int) -> InPlacePayload | None:
        """Return the payload of the slot that `sequence` uses for a policy; None where it is to be copied."""

    def close(self) -> None:
        """Give the memory up once the device's copies have ended; may be called twice."""


class Registrar(Protocol):
    """Registers request segments with a device."""

    #: Requests of at least this many payload bytes are copied directly; None: no channel is registered.
    threshold: int | None

    def open(self, requests: int, geometry: Geometry) -> RegisteredRequests | None:
        """Begin to register the segment of a descriptor that stays the caller's; return None if that does not pay."""


class MappedChannel:
    """A channel that the constructor maps; `ChannelState` serves it after `prefault`, and its owner closes it."""

    def __init__(
        self,
        channel_info: ChannelInfo,
        descriptors: Sequence[int] = (),
        *,
        writable_requests: bool = False,
        registrar: Registrar | None = None,
    ) -> None:
        """Take over `descriptors`, see `EngineChannel`; a `registrar` lets the device read the requests directly."""
        self.channel_info = channel_info
        self._registrar = registrar if registrar is not None and registrar.threshold is not None else None
        #: Descriptor for the registrar's mapping, until that is made.
        self._requests: int | None = None
        # Without names and descriptors EngineChannel raises the error.
        if self._registrar is not None and (channel_info.names is not None or descriptors):
            self._requests = _open_requests(channel_info, descriptors)
        try:
            self.channel = EngineChannel(channel_info, descriptors, writable_requests=writable_requests)
        except BaseException:
            self._close_requests()
            raise

    def prefault(self) -> Iterator[None]:
        """Prefault the memory, a piece at each step; any page left out is faulted in at its first use."""
        return self.channel.prefault()

    def register(self) -> RegisteredRequests | None:
        """Return the requests as memory that the device reads directly, or None; the caller closes it."""
        try:
            if self._registrar is None or self._requests is None:
                return None
            return self._registrar.open(self._requests, self.channel.requests.segment.geometry)
        finally:
            self._close_requests()

    def close(self, let_go: Callable[[EngineChannel], None] = EngineChannel.close) -> None:
        """Close the channel through `let_go`, at once or later, after its registration; may be called twice."""
        self._close_requests()
        let_go(self.channel)

    def _close_requests(self) -> None:
        requests, self._requests = self._requests, None
        if requests is not None:
            os.close(requests)


def _open_requests(channel_info: ChannelInfo, descriptors: Sequence[int]) -> int:
    """Return a descriptor of the channel's requests that may be mapped writable; the caller closes it."""
    if channel_info.names is not None:
        try:
            shared = posix_ipc.SharedMemory(channel_info.names.requests)
        except posix_ipc.ExistentialError as error:
            raise FileNotFoundError(f"shared memory {channel_info.names.requests} is gone") from error
        descriptor: int = shared.fd
        return descriptor
    return os.dup(descriptors[0])
