"""An announced request on a channel within this process: an engine that sleeps is rung, and one that is awake is not."""

from __future__ import annotations

import select
import time

import pytest

from shmserve.backend import mark_asleep, mark_awake
from tests.support.channel_ends import ChannelEnds
from tests.support.native import NATIVE


def is_rung(ends: ChannelEnds) -> bool:
    pipe = ends.engine.request_pipe
    assert pipe is not None
    return bool(select.select([pipe], [], [], 0)[0])


@pytest.mark.skipif(not NATIVE, reason="an engine in pure Python does not say that it sleeps")
def test_an_engine_is_rung_if_it_sleeps() -> None:
    with ChannelEnds() as ends:
        mark_awake(ends.engine.replies.writers)
        ends.channel.expect(time.monotonic_ns())
        assert not is_rung(ends)

        mark_asleep(ends.engine.replies.writers)
        ends.channel.expect(time.monotonic_ns())
        assert is_rung(ends)


def test_an_engine_that_never_said_where_it_runs_is_not_rung() -> None:
    with ChannelEnds() as ends:
        ends.channel.expect(time.monotonic_ns())
        assert not is_rung(ends)
