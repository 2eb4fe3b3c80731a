"""shmserve-admin update-model and versions as operators and their programs use them."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from shmserve.package_files import content_version
from shmserve.varlink import VarlinkError
from tests.support.admin_command import (
    admin,
    admin_json,
    end_admin,
    engines_of,
    refused,
    served,
    staged,
    start_admin,
    update,
)
from tests.support.daemon_process import Daemon, wait_until
from tests.support.gain_packages import gain_package
from tests.support.gate import Gate

pytestmark = pytest.mark.sealed_too

_X = {"x": np.arange(3), "robot": "r"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packages")


@pytest.fixture(scope="module")
def packages(folder: Path) -> list[Path]:
    """Two packages that the daemon keeps warm in turn."""
    return [gain_package(folder, 2), gain_package(folder, 3)]


@pytest.fixture(scope="module")
def daemon(packages: list[Path]) -> Iterator[Daemon]:
    with Daemon(packages[0]) as daemon:
        update(daemon, packages[1])
        update(daemon, packages[0])
        yield daemon


@pytest.fixture(autouse=True)
def first_one_serves(daemon: Daemon, packages: list[Path]) -> None:
    """However the test before ended: at once, because its engine is warm."""
    update(daemon, packages[0])


def test_programs_get_json_whether_they_ask_before_or_after_the_command(daemon: Daemon, packages: list[Path]) -> None:
    found = admin_json(daemon, "update-model", packages[1])
    assert found["version"] == content_version(packages[1]) and found["changed"] and found["pause_ms"] > 0

    again = admin(daemon, "update-model", packages[1], "--json")
    told = json.loads(again.stdout)
    steps = told.pop("steps")
    assert told == {"version": content_version(packages[1]), "changed": False, "pause_ms": 0.0}
    assert [step["step"] for step in steps] == ["receive", "check"]
    assert steps[0]["bytes"] == sum(file.stat().st_size for file in packages[1].iterdir()) and steps[0]["seconds"] > 0
    back = admin(daemon, "rollback", "--json")
    assert json.loads(back.stdout)["version"] == content_version(packages[0])
    kept = {version["version"]: version for version in json.loads(admin(daemon, "versions", "--json").stdout)}
    first, second = (kept[content_version(package)] for package in packages)
    assert (first["serving"], first["current"], first["standby"], first["previous"]) == (True, True, False, False)
    assert (second["serving"], second["current"], second["standby"], second["previous"]) == (False, False, True, True)
    assert (second["source"], second["uid"], second["device"], second["note"]) == ("gain-3", os.getuid(), "cpu", "")
    assert second["size_bytes"] == sum(file.stat().st_size for file in packages[1].iterdir())


def test_programs_get_json_of_a_refusal_too(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text("[model]\nname = 'empty'\n")

    done = admin(daemon, "--json", "update-model", tmp_path)

    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert (found["changed"], found["reason"]) == (False, "package")
    assert found["message"] in done.stderr


def test_the_exit_status_tells_refusals_usage_and_no_daemon_apart(daemon: Daemon, packages: list[Path]) -> None:
    absent = [str(daemon.folder / "nowhere")]
    command = admin(daemon, "--version").args[0]

    def status(*words: str) -> int:
        return subprocess.run([command, *words], capture_output=True, check=False).returncode

    assert admin(daemon, "update-model", packages[0]).returncode == 0
    assert admin(daemon, "rollback", "beef").returncode == 1
    assert admin(daemon, "update-model").returncode == 2
    assert admin(daemon, "update-model", packages[0], "--in-palce").returncode == 2
    assert status("--runtime-dir", *absent, "update-model", str(packages[0])) == 3
    assert status("--runtime-dir", *absent, "versions") == 3


@pytest.mark.parametrize("way", ["here", "above", "below", "absolute", "link", "slash"])
def test_any_way_to_write_the_path_works(way: str, daemon: Daemon, packages: list[Path], tmp_path: Path) -> None:
    package = packages[1]
    (tmp_path / "link").symlink_to(package)
    (package.parent / "somewhere").mkdir(exist_ok=True)
    path, cwd = {
        "here": (".", package),
        "above": (f"../{package.name}", package.parent / "somewhere"),
        "below": (package.name, package.parent),
        "absolute": (str(package), tmp_path),
        "link": ("link", tmp_path),
        "slash": (f"{package.name}/", package.parent),
    }[way]

    done = admin(daemon, "update-model", path, "--json", cwd=cwd)

    assert json.loads(done.stdout)["version"] == content_version(package), done.stderr
    (kept,) = [kept for kept in admin_json(daemon, "versions") if kept["serving"]]
    assert kept["source"] == package.name


def _tar(package: Path, target: Path, folder: str = ".") -> Path:
    with tarfile.open(target, "w") as archive:
        archive.add(package, folder)
    return target


@pytest.mark.parametrize("packing", ["tar", "tar with its folder", "tar.gz"])
def test_a_directory_and_its_tar_are_one_version(
    packing: str, daemon: Daemon, packages: list[Path], tmp_path: Path
) -> None:
    archive = _tar(packages[1], tmp_path / "model.tar", "model" if "folder" in packing else ".")
    if packing == "tar.gz":
        archive.write_bytes(gzip.compress(archive.read_bytes()))
    kept = len(admin_json(daemon, "versions"))

    result = update(daemon, archive)

    assert (result["version"], result["steps"]) == (content_version(packages[1]), ["receive", "check", "swap"])
    assert len(admin_json(daemon, "versions")) == kept
    shutil.copytree(packages[1], tmp_path / "copy")
    assert not update(daemon, tmp_path / "copy")["changed"]


def test_the_serving_version_is_not_loaded_again(daemon: Daemon, packages: list[Path]) -> None:
    before = engines_of(daemon.pid)

    result = update(daemon, packages[0], note="once more")

    assert (result["changed"], result["steps"]) == (False, ["receive", "check"])
    assert engines_of(daemon.pid) == before
    assert [kept["note"] for kept in admin_json(daemon, "versions") if kept["serving"]] == ["once more"]


@pytest.mark.long
def test_the_device_may_be_named_and_a_wrong_one_is_refused(daemon: Daemon, packages: list[Path]) -> None:
    assert not update(daemon, packages[0], device="cpu")["changed"]
    with refused("device", 'device = "abacus" must be "cpu", "cuda", or "cuda:0"'):
        update(daemon, packages[0], device="abacus")
    with refused("device", "DeviceMissing: device cuda:99: the"):
        update(daemon, packages[0], device="cuda:99")
    assert served(daemon) == content_version(packages[0])
    assert all(kept["refused"] is None for kept in admin_json(daemon, "versions")), "the version is as good as before"

    # The same version, on another device as far as torch's names go.
    moved = update(daemon, packages[0], device="cpu:0")

    assert (moved["changed"], moved["version"]) == (True, content_version(packages[0]))
    assert daemon.status()["model"]["device"] == "cpu:0"
    assert update(daemon, packages[0], device="cpu")["steps"] == ["receive", "check", "swap"]


_STEPS = ["receive", "load", "warm up"]


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGKILL, id="kill -9"), pytest.param(signal.SIGINT, id="Ctrl-C", marks=pytest.mark.long)],
)
@pytest.mark.parametrize("step", _STEPS)
def test_the_old_model_stays_if_the_command_ends_in_the_middle(
    step: str, number: int, daemon: Daemon, packages: list[Path], gate: Gate, tmp_path: Path
) -> None:
    if step == "receive":
        package = gain_package(tmp_path, 6)
        with open(package / "weights.bin", "wb") as file:
            file.truncate(4 << 30)  # takes long to hash, and no room to send
    else:
        package = gain_package(tmp_path, 6, **{"loads_behind" if step == "load" else "warms_up_behind": str(gate.path)})
    process = start_admin(daemon, "update-model", package)
    assert process.stdout is not None
    said = ""
    while f"  {step}" not in said:
        read = process.stdout.read(1)
        assert read, said
        said += read
    if step == "receive":
        wait_until("it arrives", lambda: staged(daemon))
    else:
        gate.wait_entered()

    process.send_signal(number)
    done = end_admin(process)

    assert done.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in done.stderr
    wait_until("nothing is on its way", lambda: not staged(daemon) and daemon.status()["state"] == "ready")
    wait_until("the engines of before are left", lambda: len(engines_of(daemon.pid)) <= 2)
    assert served(daemon) == content_version(packages[0])
    with daemon.client() as client:
        assert client.infer(_X)["k"] == 2
    # The next one is not busy.
    assert update(daemon, packages[1])["changed"]


def test_the_steps_are_printed_with_their_times(daemon: Daemon, folder: Path) -> None:
    package = gain_package(folder, 4)

    done = admin(daemon, "update-model", package, "--note", "from the night run")

    assert done.returncode == 0, done.stderr
    *steps, last = done.stdout.splitlines()
    words = [step.rsplit(maxsplit=2) for step in steps]
    assert [name.strip() for name, _, _ in words] == ["receive", "check", "start", "load", "warm up", "swap"]
    assert all(float(seconds) >= 0 and unit == "s" for _, seconds, unit in words)
    assert last.startswith(f"serving version {content_version(package)}; no request was taken for ")
    assert served(daemon) == content_version(package)
    table = admin(daemon, "versions").stdout
    assert "from the night run" in table and "gain-4" in table


@pytest.mark.long
def test_all_but_one_of_twenty_updates_at_once_are_busy(daemon: Daemon, gate: Gate, folder: Path) -> None:
    package = gain_package(folder, 5, loads_behind=str(gate.path))

    def attempt(number: int) -> str:
        try:
            return str(update(daemon, package)["changed"])
        except VarlinkError as refusal:
            return str(refusal.parameters["reason"])

    with ThreadPoolExecutor(20) as pool:
        attempts = [pool.submit(attempt, number) for number in range(20)]
        wait_until("nineteen were told", lambda: sum(attempt.done() for attempt in attempts) == 19)
        gate.wait_entered()
        # What looks is never busy.
        assert daemon.status()["state"] == "updating"
        assert admin(daemon, "wait-ready").returncode == 0
        assert admin(daemon, "rollback").stderr.startswith("shmserve-admin: another update or rollback is under way")
        gate.open()

    assert sorted(attempt.result() for attempt in attempts) == ["True"] + ["busy"] * 19
    assert served(daemon) == content_version(package)


@pytest.mark.long
def test_an_update_that_was_asked_for_too_early_waits_for_the_first_model(
    make_daemon: Callable[..., Daemon], gate: Gate, tmp_path: Path
) -> None:
    other = gain_package(tmp_path, 3)
    daemon = make_daemon(gain_package(tmp_path, 2, loads_behind=str(gate.path)))
    daemon.spawn()
    gate.wait_entered()
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(update, daemon, other)
        wait_until("it arrived", lambda: "update asked for" in daemon.log)
        gate.open()

        assert early.result()["changed"]
    daemon.wait_ready()
    assert served(daemon) == content_version(other)
