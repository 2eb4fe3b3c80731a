"""Time that a new channel keeps the engine from other clients' requests: `python -m bench.channel_memory`.

The kernel clears each page of new memory at the first touch. `at once` is one mapping with MAP_POPULATE, as a client makes
it; `longest piece` is the longest work of the engine between two requests, and `pieces` the sum of all pieces. The last
two columns are the same for the release of the memory. Medians, in milliseconds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator

from shmserve.channel import ChannelInfo, EngineChannel
from shmserve.layout import Geometry
from shmserve.sealed_channel import SealedChannelFds
from shmserve.segment import Identity, Segment

_REPLIES = Geometry(slots=4, metadata_bytes=4096, payload_bytes=64 << 10)
_MIB = (1, 4, 16, 64)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, Linux {os.uname().release}; milliseconds")
    print(f"{'requests':>8}{'at once':>10}{'longest piece':>15}{'pieces':>9}{'given back: longest':>21}{'all':>8}")
    for mib in _MIB:
        requests = Geometry(slots=4, metadata_bytes=4096, payload_bytes=mib << 18)
        rows = [(_at_once(requests), *_in_pieces(requests)) for _ in range(rounds)]
        at_once, longest, together, given_back, all_given_back = (
            statistics.median(each) * 1e3 for each in zip(*rows, strict=True)
        )
        print(
            f"{mib:4} MiB{at_once:10.2f}{longest:15.2f}{together:9.2f}{given_back:21.2f}{all_given_back:8.2f}",
            flush=True,
        )
    return 0


def _at_once(requests: Geometry) -> float:
    sealed = SealedChannelFds()
    given = sealed.create(Identity(1, 0, 1), requests, _REPLIES)
    began_s = time.perf_counter()
    segments = [Segment.from_descriptor(each, writable=False) for each in sealed.engine_ends()[:2]]
    took_s = time.perf_counter() - began_s
    for segment in segments:
        segment.close()
    _end(sealed, given)
    return took_s


def _in_pieces(requests: Geometry) -> tuple[float, float, float, float]:
    sealed = SealedChannelFds()
    channel_info = ChannelInfo(Identity(1, 0, 1), None)
    given = sealed.create(channel_info.identity, requests, _REPLIES)
    channel = EngineChannel(channel_info, [os.dup(descriptor) for descriptor in sealed.engine_ends()])
    prefaulted, released = _pieces_s(channel.prefault()), _pieces_s(channel.release_pages())
    channel.close()
    _end(sealed, given)
    return max(prefaulted), sum(prefaulted), max(released), sum(released)


def _pieces_s(pieces: Iterator[None]) -> list[float]:
    took_s = []
    before_s = time.perf_counter()
    for _ in pieces:
        now_s = time.perf_counter()
        took_s.append(now_s - before_s)
        before_s = now_s
    return took_s


def _end(sealed: SealedChannelFds, given: list[int]) -> None:
    sealed.close()
    for descriptor in given:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
