"""The core's metadata and layout, fuzzed in C by itself, and the readers of libshmserve beside Python's."""

from __future__ import annotations

import shutil

import pytest

from fuzz import core_fuzz, lib_fuzz

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="a C compiler is missing")


@pytest.mark.parametrize(
    "inputs", [pytest.param(100_000, id="short"), pytest.param(10_000_000, id="long", marks=pytest.mark.long)]
)
def test_accepted_metadata_has_one_form_and_every_layout_is_exact(inputs: int) -> None:
    said = core_fuzz.run(inputs)

    counted, accepted = (int(word) for word in said.split() if word.isdigit())
    assert counted == inputs
    assert accepted > inputs // 10


@pytest.mark.parametrize(
    "inputs", [pytest.param(20_000, id="short"), pytest.param(1_000_000, id="long", marks=pytest.mark.long)]
)
def test_c_and_python_accept_the_same_metadata_and_the_same_replies_of_a_daemon(inputs: int) -> None:
    tried, accepted = lib_fuzz.run(inputs)

    assert tried > inputs * 0.9
    assert accepted > inputs // 50
