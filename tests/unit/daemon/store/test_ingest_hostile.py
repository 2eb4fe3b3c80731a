"""Archives that are refused, and why."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest

from shmserve.daemon.store import ArchiveRefused
from tests.support.archives.hostile import HOSTILE, Hostile
from tests.support.archives.taking import Take
from tests.support.archives.tar_bytes import (
    BASE,
    member,
    packed,
    tar,
)

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


@pytest.mark.fault("T71", "T72", "T74", "T75")
@pytest.mark.parametrize("hostile", HOSTILE, ids=str)
def test_a_hostile_archive_is_refused_and_leaves_nothing(hostile: Hostile, take: Take, tmp_path: Path) -> None:
    with pytest.raises(ArchiveRefused, match=hostile.reason) as refusal:
        take(hostile.build())

    assert os.listdir(tmp_path) == ["sent"]
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 400


def test_the_corpus_is_large_and_no_case_is_there_twice() -> None:
    assert len({hostile.build() for hostile in HOSTILE}) == len(HOSTILE) >= 100


def test_a_long_name_is_shown_in_part(take: Take) -> None:
    with pytest.raises(ArchiveRefused) as refusal:
        take(tar(member(b"\x1b" * 90 + b"END")))

    assert "\x1b" not in str(refusal.value) and "END" not in str(refusal.value)
    assert all(len(quoted) <= 64 for quoted in re.findall(r"'.*'|'.*\.\.\.", str(refusal.value)))


@pytest.mark.fault("T75")
def test_a_package_of_more_bytes_than_allowed_is_refused_before_it_is_written(take: Take) -> None:
    with pytest.raises(ArchiveRefused, match="'weights' has 2000 bytes and the files before it 1000"):
        take(tar(member(b"one", b"1" * 1000), member(b"weights", b"2" * 2000)), total_bytes=2500)


def test_a_file_larger_than_any_package_is_refused_at_once(take: Take, tmp_path: Path) -> None:
    with open(tmp_path / "sent.tar", "wb") as file:
        file.truncate(1 << 40)

    with pytest.raises(ArchiveRefused, match="the archive has 1099511627776 bytes"):
        take(tmp_path / "sent.tar")


@pytest.mark.fault("T74")
def test_a_small_package_that_compresses_well_is_accepted(take: Take) -> None:
    content = bytes(15 << 20)

    assert take(packed(tar(BASE, member(b"zeros", content)))).files[-1].size == len(content)


def test_random_bytes_are_not_an_archive(take: Take) -> None:
    generator = random.Random(1)
    for magic in (b"", b"\x1f\x8b\x08\0", b"ustar"):
        with pytest.raises(ArchiveRefused):
            take(magic + generator.randbytes(10_000))
