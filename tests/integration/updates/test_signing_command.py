"""shmserve-admin generate-key and sign, and a daemon that takes signed packages only."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.package_files import content_version
from tests.support import watchdog
from tests.support.admin_command import COMMAND, refused, rollback, served, update
from tests.support.daemon_process import Daemon, environment
from tests.support.gain_packages import gain_package

pytestmark = pytest.mark.long

pytest.importorskip("cryptography")


def _run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command without a daemon."""
    with watchdog.limit(60):
        return subprocess.run(
            [str(COMMAND), *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment(),
            cwd=cwd,
            check=False,
        )


def _json(*arguments: object) -> Any:
    done = _run("--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("signing")


@pytest.fixture(scope="module")
def public(folder: Path) -> str:
    """The private half is in folder/key.pem."""
    key: str = _json("generate-key", folder / "key.pem")["public_key"]
    return key


@pytest.fixture(scope="module")
def signed(public: str, folder: Path) -> Callable[..., Path]:
    """A package y = k * x that is signed with the key, and perhaps a release."""

    def make(k: int, release: int | None = None) -> Path:
        package = gain_package(folder, k, **({} if release is None else {"release": release}))
        if release is not None:
            (package / "model.toml").write_text(f"[model]\nrelease = {release}\n")
        assert _run("sign", package, "--key", folder / "key.pem").returncode == 0
        return package

    return make


@pytest.fixture(scope="module")
def daemon(public: str, signed: Callable[..., Path]) -> Iterator[Daemon]:
    config = f'require_signature = true\nsignature_keys = ["{public}"]\n'
    daemon = Daemon(signed(2), config=config)
    try:
        yield daemon.start()
    finally:
        daemon.dismiss()


def test_a_configuration_accepts_the_output_of_generate_key(tmp_path: Path) -> None:
    done = _run("generate-key", "robots.pem", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE((tmp_path / "robots.pem").stat().st_mode) == 0o600
    lines = [line.strip() for line in done.stdout.splitlines() if line.startswith("  ")]
    (tmp_path / "arm.toml").write_text("\n".join(lines) + "\n")
    checked = subprocess.run(
        [COMMAND.parent / "shmserved", "--check-config", "--config", tmp_path / "arm.toml"],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert "require_signature = true" in checked.stdout


def test_a_key_is_never_overwritten(public: str, folder: Path) -> None:
    before = (folder / "key.pem").read_bytes()

    done = _run("generate-key", folder / "key.pem")

    assert done.returncode == 1 and "cannot be made: File exists" in done.stderr
    assert (folder / "key.pem").read_bytes() == before


def test_signing_says_which_version_and_leaves_it(public: str, folder: Path, tmp_path: Path) -> None:
    package = gain_package(tmp_path, 5)
    version = content_version(package)

    found = _json("sign", package, "--key", folder / "key.pem")

    assert found["version"] == version == content_version(package)
    assert found["public_key"] == public


def test_a_key_with_a_password_needs_it(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("open sesame\n")
    _json("generate-key", tmp_path / "key.pem", "--password-file", tmp_path / "password")
    package = gain_package(tmp_path, 5)

    without = _run("sign", package, "--key", tmp_path / "key.pem")
    _json("sign", package, "--key", tmp_path / "key.pem", "--password-file", tmp_path / "password")

    assert without.returncode == 1 and "cannot be used" in without.stderr and "Traceback" not in without.stderr


@pytest.mark.parametrize(
    ("package", "key", "said"),
    [("absent", "key.pem", "absent cannot be read"), ("gain-2", "absent.pem", "absent.pem cannot be read")],
)
def test_a_package_that_cannot_be_signed_is_reported(
    package: str, key: str, said: str, folder: Path, signed: Callable[..., Path], daemon: Daemon
) -> None:
    done = _run("sign", folder / package, "--key", folder / key)

    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr


def test_a_daemon_accepts_only_packages_signed_by_the_owner_of_its_keys(
    daemon: Daemon, signed: Callable[..., Path], tmp_path: Path
) -> None:
    assert update(daemon, signed(3))["changed"]
    three = served(daemon)

    with refused("package", "has no model.sig", "shmserve-admin sign"):
        update(daemon, gain_package(tmp_path, 4))
    changed = tmp_path / "changed"
    shutil.copytree(signed(4), changed)
    (changed / "policy.py").write_text((changed / "policy.py").read_text() + "\n")
    with refused("package", "does not fit the package's files"):
        update(daemon, changed)
    _json("generate-key", tmp_path / "stranger.pem")
    _json("sign", changed, "--key", tmp_path / "stranger.pem")
    with refused("package", "this service trusts"):
        update(daemon, changed)

    assert served(daemon) == three
    with daemon.client() as client:
        assert client.infer({"x": np.arange(3), "robot": "r"})["k"] == 3


@pytest.mark.long
def test_an_old_release_comes_back_only_on_purpose(daemon: Daemon, signed: Callable[..., Path], tmp_path: Path) -> None:
    """Its signature is as good as ever, and that is what somebody who kept a copy of it has."""
    five, other, seven = signed(5, release=5), signed(6, release=5), signed(7, release=7)
    assert update(daemon, five)["changed"]
    assert update(daemon, other)["changed"]  # the same release is not an older one
    assert update(daemon, seven)["changed"]

    for old, release in ((five, 5), (signed(8), 0)):
        with refused("downgrade", f"is release {release}, and this service has served release 7", "--allow-downgrade"):
            update(daemon, old)
    assert served(daemon) == content_version(seven)
    daemon.stop()
    daemon.start()
    with refused("downgrade", "has served release 7"):
        update(daemon, five)

    # A rollback is on purpose, and counts no release back.
    assert rollback(daemon)["version"] == content_version(other)
    assert not update(daemon, other)["changed"]
    with refused("downgrade", "has served release 7"):
        update(daemon, five)
    releases = {kept["version"]: kept["release"] for kept in daemon.admin("Versions")["versions"]}
    assert releases[content_version(seven)] == 7 and releases[content_version(other)] == 5

    # The operator's word does: a number that was too high is not for ever.
    assert update(daemon, five, allow_downgrade=True)["changed"]
    assert update(daemon, signed(9, release=6))["changed"]
