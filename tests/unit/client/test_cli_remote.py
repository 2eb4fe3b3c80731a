"""`shmserve-admin remote` without Ray: what is found before Ray is asked."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from shmserve.client.cli import remote
from shmserve.client.cli.main import main


def status(monkeypatch: pytest.MonkeyPatch, cluster: str) -> tuple[Result, list[str]]:
    """Run `remote status` with a cluster without applications; return the result, and the addresses that Ray was given."""
    asked: list[str] = []
    scale = SimpleNamespace(connect=asked.append, applications=list)
    monkeypatch.setattr(remote, "_scale", lambda: scale)
    return CliRunner().invoke(main, ["remote", "status", "--cluster", cluster]), asked


def test_ray_is_not_asked_for_a_cluster_that_accepts_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result, asked = status(monkeypatch, address)

    assert (result.exit_code, asked) == (3, [])
    assert f"no Ray cluster at {address}: [Errno 111] Connection refused. Start one there" in result.stderr


@pytest.mark.parametrize("address", ["auto", "ray://head:10001"])
def test_an_address_that_only_ray_knows_is_left_to_it(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    result, asked = status(monkeypatch, address)

    assert asked == [address]
    assert result.stdout == "the cluster runs no application of shmserve\n"
