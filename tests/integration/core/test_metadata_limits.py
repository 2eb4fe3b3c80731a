"""Hostile metadata in a process under limits of memory and time, for each reader."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from tests.support.metadata_bytes import CODE, COSTLY, REFUSED, WASTED, alone, dict_of, integer, native_only

_CHILD = """
import pickle, resource, sys
from shmserve.metadata import load

read = load
if sys.argv[1] == "native":
    from shmserve._core import TreeDecoder as read
streams = pickle.load(sys.stdin.buffer)
here = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (here + 8 * 2**20,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
outcomes = []
for data in streams:
    if data == b"hoard":
        hoard = bytes(32 * 2**20)
    try:
        read(data)
        outcomes.append("tree")
    except ValueError:
        outcomes.append("refused")
print(*outcomes)
"""


def in_a_limited_child(reader: str, streams: list[bytes]) -> subprocess.CompletedProcess[bytes]:
    """Reads each with 8 MiB of address space to spare, and 20 seconds of processor time for all."""
    return subprocess.run(
        [sys.executable, "-c", _CHILD, reader],
        input=pickle.dumps(streams),
        capture_output=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("reader", ["load", pytest.param("native", marks=native_only)])
def test_all_that_is_hostile_is_refused_within_8_MiB_of_address_space_and_in_bounded_time(reader: str) -> None:
    refused = [alone(data) for data in [*CODE.values(), *WASTED.values()]]
    refused += [data for data, _ in REFUSED.values()]
    taken = [alone(data) for data in COSTLY.values()]

    child = in_a_limited_child(reader, (refused + taken) * 10)

    assert child.returncode == 0, child.stderr.decode()
    assert child.stdout.decode().split() == (["refused"] * len(refused) + ["tree"] * len(taken)) * 10


def colliding_keys() -> bytes:
    """Metadata of many integer keys that a simple hash of their bytes (FNV-1a, by 32 bits) takes for one."""
    keys = []
    for low in range(1, 4090):
        high = ((2166136261 ^ low) * 16777619) & 0x1FFF
        keys.append(high << 32 | low)
    return alone(dict_of(*(integer(key) + b"N" for key in keys)))


@native_only
@pytest.mark.fault("T37")
def test_keys_that_were_chosen_to_collide_cost_no_more_than_others() -> None:
    """Hashed without a secret they took 22 ms each, fifty times the time of others: 44 s together."""
    child = in_a_limited_child("native", [colliding_keys()] * 2000)

    assert child.returncode == 0, child.stderr.decode()
    assert child.stdout.split() == [b"tree"] * 2000


def test_the_child_cannot_have_more_memory_than_it_is_allowed() -> None:
    child = in_a_limited_child("load", [b"hoard"])

    assert b"MemoryError" in child.stderr
    assert child.returncode == 1
