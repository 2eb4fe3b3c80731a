"""Signatures beside openssl, tar, and Pythons without the library."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmserve.daemon.store import SignaturePolicy, Store, StoredVersion
from shmserve.package_files import package_files
from shmserve.package_signature import (
    KeyUnusable,
    PublicKey,
    make_key_pair,
    sign_package,
    signed_bytes,
)
from tests.support.archives.packages import content_of, opened, write_package
from tests.support.archives.taking import ingest_here

pytest.importorskip("cryptography")


@pytest.fixture
def key(tmp_path: Path) -> PublicKey:
    """Its private half is in tmp_path/key.pem."""
    return make_key_pair(tmp_path / "key.pem")


@pytest.fixture
def package(key: PublicKey, tmp_path: Path) -> Path:
    """Signed with the key."""
    sign_package(write_package(tmp_path / "arm"), tmp_path / "key.pem")
    return tmp_path / "arm"


@pytest.fixture
def store(key: PublicKey, tmp_path: Path) -> Iterator[Store]:
    """Takes signed packages only."""
    store = Store(tmp_path / "models", ingest=ingest_here, signatures=SignaturePolicy(required=True, keys=[key]))
    store.open()
    yield store
    store.close()


def add(store: Store, path: Path) -> StoredVersion:
    with opened(path) as descriptor:
        return asyncio.run(store.add(descriptor, uid=0))


def test_openssl_makes_keys_and_checks_signatures_too(tmp_path: Path) -> None:
    private, public = str(tmp_path / "private.pem"), str(tmp_path / "public.pem")
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    package = write_package(tmp_path / "arm")

    key = sign_package(package, Path(private))

    assert key == PublicKey.read(public)
    (tmp_path / "signed").write_bytes(signed_bytes(package_files(package)))
    _, mark = (package / "model.sig").read_text().splitlines()[1].split()
    (tmp_path / "mark").write_bytes(base64.b64decode(mark))
    files = ["-in", str(tmp_path / "signed"), "-sigfile", str(tmp_path / "mark")]
    subprocess.run(["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", public, *files], check=True)


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    private, public = str(tmp_path / "private.pem"), str(tmp_path / "public.pem")
    made = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", private]
    subprocess.run(made, check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)

    with pytest.raises(KeyUnusable, match="is not of the kind Ed25519"):
        PublicKey.read(public)
    with pytest.raises(KeyUnusable, match="is not of the kind Ed25519"):
        sign_package(write_package(tmp_path / "arm"), Path(private))


def test_the_command_names_the_remedy_for_an_absent_library(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from shmserve.package_signature import PublicKey, KeyUnusable\n"
        "from shmserve.daemon.store import DowngradeRefused, Store, SignaturePolicy\n"
        "from pathlib import Path\n"
        "key = PublicKey.read('A' * 43 + '=')\n"
        "try: Store(Path(sys.argv[1]), signatures=SignaturePolicy(True, [key])).open()\n"
        "except KeyUnusable as error: print(error)\n"
    )

    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "models"], capture_output=True, text=True, check=True
    )

    assert "pip install 'shmserve[signing]'" in run.stdout


def test_the_library_is_not_imported_until_something_is_signed_or_checked() -> None:
    script = "import sys, shmserve.daemon.store, shmserve.package_signature; print('cryptography' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout == b"False\n"


def test_a_signed_tar_with_a_folder_is_kept(store: Store, package: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "-C", tmp_path, "-czf", tmp_path / "arm.tgz", "arm"], check=True)

    assert content_of(add(store, tmp_path / "arm.tgz").path) == content_of(package)
