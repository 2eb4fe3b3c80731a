"""Going back to an earlier version: which one, how fast, and what is refused."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from shmserve.package_files import content_version
from tests.support.admin_command import changing, engines_of, refused, rollback, served, update
from tests.support.daemon_process import POLICIES, Daemon, wait_until
from tests.support.gain_packages import gain_package

_X = {"x": np.arange(3), "robot": "r"}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("packages")
    return [gain_package(folder, k) for k in (2, 3, 4)]


@pytest.fixture(scope="module")
def daemon(packages: list[Path]) -> Iterator[Daemon]:
    """It has served the first and the second, and serves the third; the second is kept warm."""
    with Daemon(packages[0]) as daemon:
        update(daemon, packages[1])
        update(daemon, packages[2])
        wait_until("the first engine has ended", lambda: len(engines_of(daemon.pid)) == 2)
        yield daemon


def _keep(daemon: Daemon, package: Path) -> None:
    """Send a package and hang up before anything of it runs: it is kept, and was never served."""
    fd = os.open(package, os.O_RDONLY)
    try:
        with changing(daemon, "UpdateModel", {"name": package.name}, fd) as replies:
            for reply in replies:
                if reply["step"] == "start":
                    break
    finally:
        os.close(fd)
    wait_until("it is over", lambda: daemon.status()["state"] == "ready")


def test_it_is_instant_while_the_engine_is_warm_and_leads_to_and_fro(daemon: Daemon, packages: list[Path]) -> None:
    engines = engines_of(daemon.pid)
    with daemon.client() as client:
        for k in (3, 4, 3, 4):
            result = rollback(daemon)

            assert (result["steps"], result["changed"]) == (["check", "swap"], True)
            reply = client.request(_X)
            assert reply.action["k"] == k
            assert reply.model_version == result["version"]
    assert sorted(engines_of(daemon.pid)) == sorted(engines)


@pytest.mark.long
def test_a_version_may_be_named_by_its_beginning(daemon: Daemon, packages: list[Path]) -> None:
    first, third = content_version(packages[0]), content_version(packages[2])
    assert served(daemon) == third

    result = rollback(daemon, first[:8].upper())

    assert (result["version"], served(daemon)) == (first, first)
    assert "start" in result["steps"]  # it was not warm any more
    assert rollback(daemon)["version"] == third
    assert not rollback(daemon, third)["changed"]


def test_a_beginning_of_two_versions_and_an_unknown_one_are_refused_with_the_candidates(
    daemon: Daemon, packages: list[Path], tmp_path: Path
) -> None:
    kept = [content_version(package) for package in packages]
    # Another package whose version begins with the same digit as one of those.
    package = next(
        package
        for package in (gain_package(tmp_path, k) for k in itertools.count(100))
        if content_version(package)[0] in {version[0] for version in kept}
    )
    _keep(daemon, package)
    other = content_version(package)
    before = served(daemon)
    digit = other[0]

    with refused("unknown_version", f"'{digit}' is the beginning of ", " versions: ", other):
        rollback(daemon, digit)
    with refused("unknown_version", "no kept version is named 'xyz'", *kept, other):
        rollback(daemon, "xyz")
    with refused("unknown_version", "no kept version is named ''"):
        rollback(daemon, "")
    assert served(daemon) == before


@pytest.mark.long
def test_a_version_that_was_damaged_on_the_disk_is_refused(
    daemon: Daemon, packages: list[Path], tmp_path: Path
) -> None:
    package, before = gain_package(tmp_path, 7), served(daemon)
    _keep(daemon, package)
    (kept,) = (daemon.state_dir / daemon.name / "models" / "versions").glob(
        f"{content_version(package)}*/settings.json"
    )
    kept.chmod(0o600)
    kept.write_text('{"k": 1000}')

    with refused("package", content_version(package), "'settings.json' was changed", "it is not served"):
        rollback(daemon, content_version(package))

    assert served(daemon) == before
    # Sending it again repairs it; then it can be served.
    _keep(daemon, package)
    assert rollback(daemon, content_version(package))["changed"]
    with daemon.client() as client:
        assert client.infer(_X)["k"] == 7
    assert rollback(daemon)["version"] == before


@pytest.mark.long
def test_without_standby_it_loads_again_and_one_engine_runs(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    old, new = gain_package(tmp_path, 2), gain_package(tmp_path, 3)
    daemon = start_daemon(old, config="standby_s = 0\n")
    assert update(daemon, new)["changed"]
    wait_until("the old engine is gone", lambda: engines_of(daemon.pid) == [daemon.engine_pid])

    result = rollback(daemon)

    assert (result["version"], result["steps"]) == (
        content_version(old),
        ["check", "start", "load", "warm up", "swap"],
    )
    wait_until("the new engine is gone", lambda: engines_of(daemon.pid) == [daemon.engine_pid])


def test_a_reply_after_a_resize_and_a_rollback_is_not_read_with_another_structure(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    """The standby makes a new state for the client, which remembers the structures of its replies."""
    daemon = start_daemon("obedient")
    other = tmp_path / "other"
    shutil.copytree(POLICIES / "obedient", other)
    (other / "another.txt").write_text("another version")
    with daemon.client() as client:
        assert client.infer({"do": "echo", "value": {"a": np.arange(3)}})["a"].tolist() == [0, 1, 2]
        update(daemon, other)
        # The channel grows while the first engine is the standby.
        assert client.infer({"do": "echo", "value": np.full(300_000, 7)})[-1] == 7
        rollback(daemon)

        assert client.infer({"do": "echo", "value": [1, 2.5, "text"]}) == [1, 2.5, "text"]
        assert client.infer({"do": "echo", "value": {"a": np.arange(4)}})["a"].tolist() == [0, 1, 2, 3]


def test_the_check_before_a_rollback_without_a_warm_engine_reports_its_bytes(
    daemon: Daemon, packages: list[Path]
) -> None:
    before, first = served(daemon), content_version(packages[0])
    size = sum(file.stat().st_size for file in packages[0].iterdir())

    with changing(daemon, "Rollback", {"version": first}) as replies:
        checks = [reply["detail"] for reply in replies if reply["step"] == "check"]

    assert checks[-1] == {"version": first, "bytes": size, "of": size}
    assert served(daemon) == first
    assert rollback(daemon)["version"] == before
