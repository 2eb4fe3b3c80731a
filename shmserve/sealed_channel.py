"""Descriptors of a channel of transport `sealed`, as the supervisor keeps them."""

from __future__ import annotations

import contextlib
import os

from .layout import Geometry
from .pipe_doorbell import create_pipe
from .segment import Identity, create_sealed_segment, read_only

#: Permissions decide nothing here, because only the descriptor leads to a memfd. But a client of this daemon that is
#: itself a daemon could pass the descriptor on as replies: a client that trusts the replies of this
#: daemon sees by this mode that they are requests (Segment.written_only_by).
_WRITTEN_BY_THE_CLIENT = 0o620


class SealedChannelFds:
    """Two memfds and the engine's ends of two pipes, kept for the engines to come.

    The client's ends of the pipes go to the client and are not kept, so that its death closes them.
    """

    def __init__(self) -> None:
        self._segments: tuple[int, int] | None = None
        self._bells: tuple[int, int] | None = None

    def create(self, identity: Identity, requests: Geometry, replies: Geometry, *, published: int = 0) -> list[int]:
        """Make the segments of a generation, and with the first one the pipes.

        Returns the client's descriptors, now the caller's: requests, replies (for reading alone), and
        with the first generation the request bell to ring and the reply bell to listen to. Raises
        OSError; then nothing has changed.
        """
        with contextlib.ExitStack() as undo:
            request_memory = create_sealed_segment(requests, identity, _WRITTEN_BY_THE_CLIENT, counter=published)
            undo.callback(os.close, request_memory)
            reply_memory = create_sealed_segment(replies, identity)
            undo.callback(os.close, reply_memory)
            given = [os.dup(request_memory)]
            undo.callback(os.close, given[0])
            given.append(read_only(reply_memory))
            undo.callback(os.close, given[1])
            if self._bells is None:
                request_listener, request_ringer = create_pipe()
                undo.callback(os.close, request_listener)
                undo.callback(os.close, request_ringer)
                reply_listener, reply_ringer = create_pipe()
                self._bells = request_listener, reply_ringer
                given += [request_ringer, reply_listener]
            undo.pop_all()
        self._close_segments()
        self._segments = request_memory, reply_memory
        return given

    def engine_ends(self) -> tuple[int, ...]:
        """Requests, replies, the request bell to listen to, the reply bell to ring; they stay this object's."""
        assert self._segments is not None and self._bells is not None
        return (*self._segments, *self._bells)

    def _close_segments(self) -> None:
        if self._segments is not None:
            for descriptor in self._segments:
                os.close(descriptor)
            self._segments = None

    def close(self) -> None:
        """May be called twice."""
        self._close_segments()
        if self._bells is not None:
            for descriptor in self._bells:
                os.close(descriptor)
            self._bells = None
