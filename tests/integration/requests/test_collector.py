"""The garbage collector in an engine: it collects what a policy leaves, and does not look at torch."""

from __future__ import annotations

from shmserve.client import ShmClient


def test_it_is_switched_on_and_leaves_out_what_the_engine_has_imported(client: ShmClient) -> None:
    found = client.infer({"do": "collector"})

    assert found["enabled"]
    assert found["frozen"] > 50_000
