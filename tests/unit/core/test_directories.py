"""Where a service's sockets and files are: which setting wins."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shmserve import directories
from shmserve.directories import (
    check_service_name,
    daemon_runtime_directory,
    daemon_state_directory,
    service_directory,
)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        "SHMSERVE_RUNTIME_DIR",
        "SHMSERVE_STATE_DIR",
        "RUNTIME_DIRECTORY",
        "STATE_DIRECTORY",
        "XDG_RUNTIME_DIR",
        "XDG_STATE_HOME",
        "HOME",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(directories, "_SYSTEM_RUNTIME", tmp_path / "run")


def test_a_daemons_runtime_directory_is_the_first_that_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert daemon_runtime_directory() == tmp_path / "tmp" / f"shmserve-{os.getuid()}"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/xdg")
    assert daemon_runtime_directory() == Path("/xdg/shmserve")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/systemd:/another")
    assert daemon_runtime_directory() == Path("/systemd")
    monkeypatch.setenv("SHMSERVE_RUNTIME_DIR", "/own")
    assert daemon_runtime_directory() == Path("/own")
    assert daemon_runtime_directory("/flag") == Path("/flag")


def test_a_daemons_state_directory_is_the_first_that_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert daemon_state_directory() == tmp_path / "tmp" / f"shmserve-{os.getuid()}"
    monkeypatch.setenv("HOME", "/home/robot")
    assert daemon_state_directory() == Path("/home/robot/.local/state/shmserve")
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    assert daemon_state_directory() == Path("/xdg/shmserve")
    monkeypatch.setenv("STATE_DIRECTORY", "/systemd:/another")
    assert daemon_state_directory() == Path("/systemd")
    monkeypatch.setenv("SHMSERVE_STATE_DIR", "/own")
    assert daemon_state_directory() == Path("/own")
    assert daemon_state_directory("/flag") == Path("/flag")


def test_a_client_looks_for_the_systems_service_before_the_users(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/xdg")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/the-robots-own-unit")
    assert service_directory("arm") == Path("/xdg/shmserve/arm")
    (tmp_path / "run" / "arm").mkdir(parents=True)
    assert service_directory("arm") == tmp_path / "run" / "arm"
    assert service_directory("head") == Path("/xdg/shmserve/head")
    monkeypatch.setenv("SHMSERVE_RUNTIME_DIR", "/own")
    assert service_directory("arm") == Path("/own/arm")
    assert service_directory("arm", "/flag") == Path("/flag/arm")


@pytest.mark.parametrize("name", ["default", "arm", "arm-1", "a.b_c", "0", "x" * 64])
def test_a_name_may_be_letters_digits_and_a_few_signs(name: str) -> None:
    assert check_service_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".arm", "-arm", "a/b", "../arm", "arm\n", "a b", "é", "x" * 65, "a\x00"]
)
def test_a_name_that_could_lead_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 64 letters, digits"):
        check_service_name(name)
    with pytest.raises(ValueError, match="service name"):
        service_directory(name)
