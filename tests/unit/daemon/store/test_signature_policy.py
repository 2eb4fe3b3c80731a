"""Signed packages: what is signed, what is refused, and that nothing but the right key and the right files pass."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shmserve.daemon.store import DowngradeRefused, SignaturePolicy, Store, StoredVersion
from shmserve.errors import ModelPackageError
from shmserve.package_files import content_version, package_files
from shmserve.package_signature import (
    KeyUnusable,
    PublicKey,
    SignatureRefused,
    check_signature,
    make_key_pair,
    sign_package,
    signed_bytes,
)
from tests.support.archives.packages import FILES, content_of, opened, write_package
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


def nothing_is_kept(store: Store) -> bool:
    return store.versions() == [] and os.listdir(store.directory / "versions") == []


# Signing


def test_the_signed_bytes_are_these(tmp_path: Path) -> None:
    write_package(tmp_path / "arm", {"b": b"1", "a/ü": b"", "model.sig": b"anything"})

    signed = signed_bytes(package_files(tmp_path / "arm"))

    assert signed.decode() == (
        "shmserve model signature 1\n"
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 0 a/ü\n"
        "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b 1 b\n"
    )


def test_signing_leaves_the_version_and_nothing_beside_the_signature(key: PublicKey, tmp_path: Path) -> None:
    package = write_package(tmp_path / "arm")
    version = content_version(package)

    assert sign_package(package, tmp_path / "key.pem") == key
    assert sign_package(package, tmp_path / "key.pem") == key

    assert content_version(package) == version
    files = content_of(package)
    assert files.pop("model.sig").count(b"\n") == 2 and files == FILES


def test_a_package_with_a_link_cannot_be_signed(key: PublicKey, tmp_path: Path) -> None:
    package = write_package(tmp_path / "arm")
    (package / "link").symlink_to("policy.py")

    with pytest.raises(ModelPackageError, match="'link' is a symbolic link"):
        sign_package(package, tmp_path / "key.pem")
    assert not (package / "model.sig").exists()


def test_an_empty_package_cannot_be_signed(key: PublicKey, tmp_path: Path) -> None:
    with pytest.raises(ModelPackageError, match="holds no file to sign"):
        sign_package(write_package(tmp_path / "arm", {"model.sig": b""}), tmp_path / "key.pem")


# Keys


def test_a_private_key_is_for_its_owner_and_never_overwritten(key: PublicKey, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    before = (tmp_path / "key.pem").read_bytes()

    with pytest.raises(KeyUnusable, match="cannot be made: File exists"):
        make_key_pair(tmp_path / "key.pem")

    assert (tmp_path / "key.pem").read_bytes() == before


def test_a_public_key_is_read_in_each_form(key: PublicKey, tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text(f"{key}\n")

    assert PublicKey.read(str(key)) == PublicKey.read(str(tmp_path / "key.pub")) == key
    assert key.id in repr(key.id) and len(str(key)) == 44


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff", b"AAAA\n", b"-----BEGIN PUBLIC KEY-----\n"])
def test_a_file_without_a_public_key_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_bytes(content)

    with pytest.raises(KeyUnusable, match=r"key\.pub is neither 32 bytes in base64 nor PEM"):
        PublicKey.read(str(tmp_path / "key.pub"))
    with pytest.raises(KeyUnusable, match="nor a file that can be read: No such file"):
        PublicKey.read(str(tmp_path / "other.pub"))


def test_a_private_key_may_have_a_password(tmp_path: Path) -> None:
    key = make_key_pair(tmp_path / "key.pem", password=b"secret")
    package = write_package(tmp_path / "arm")

    for wrong in (None, b"guess"):
        with pytest.raises(KeyUnusable, match=r"key\.pem cannot be used"):
            sign_package(package, tmp_path / "key.pem", password=wrong)
    assert sign_package(package, tmp_path / "key.pem", password=b"secret") == key


def test_a_public_key_signs_nothing(key: PublicKey, tmp_path: Path) -> None:
    for content in (str(key), ""):
        (tmp_path / "other.pem").write_text(content)
        with pytest.raises(KeyUnusable, match=r"other\.pem cannot be used"):
            sign_package(write_package(tmp_path / "arm"), tmp_path / "other.pem")


# The store


def test_a_signed_package_is_kept_with_its_signature(store: Store, package: Path) -> None:
    version = add(store, package)

    assert (version.path / "model.sig").read_bytes() == (package / "model.sig").read_bytes()
    assert version.version == content_version(package)
    asyncio.run(store.check(version))


@pytest.mark.fault("T77")
@pytest.mark.parametrize("name", sorted(FILES))
def test_one_changed_bit_in_any_file_is_refused(name: str, store: Store, package: Path) -> None:
    content = bytearray((package / name).read_bytes() or b"\0")
    content[-1] ^= 1
    (package / name).write_bytes(content)

    with pytest.raises(SignatureRefused, match="does not fit the package's files"):
        add(store, package)
    assert nothing_is_kept(store)


@pytest.mark.parametrize(
    "change",
    [
        lambda package: write_package(package, {"evil.py": b""}),
        lambda package: (package / "policy.py").unlink(),
        lambda package: (package / "policy.py").rename(package / "other.py"),
        lambda package: write_package(package, {"weights/model.sig": b""}),
    ],
    ids=["added", "removed", "renamed", "another signature further down"],
)
def test_a_package_of_other_files_is_refused(change: Callable[[Path], object], store: Store, package: Path) -> None:
    change(package)

    with pytest.raises(SignatureRefused, match="does not fit the package's files"):
        add(store, package)
    assert nothing_is_kept(store)


def test_a_missing_signature_is_refused(store: Store, package: Path) -> None:
    (package / "model.sig").unlink()

    with pytest.raises(SignatureRefused, match=r"has no model\.sig.*shmserve-admin sign"):
        add(store, package)
    assert nothing_is_kept(store)


@pytest.mark.fault("T77")
def test_the_signature_of_a_stranger_is_refused(store: Store, key: PublicKey, package: Path, tmp_path: Path) -> None:
    stranger = make_key_pair(tmp_path / "stranger.pem")
    sign_package(package, tmp_path / "stranger.pem")

    with pytest.raises(SignatureRefused, match=f"signed by key {stranger.id}; this service trusts {key.id}"):
        add(store, package)
    assert nothing_is_kept(store)


def test_a_stranger_who_claims_to_be_trusted_is_refused(
    store: Store, key: PublicKey, package: Path, tmp_path: Path
) -> None:
    stranger = make_key_pair(tmp_path / "stranger.pem")
    sign_package(package, tmp_path / "stranger.pem")
    forged = (package / "model.sig").read_text().replace(stranger.id, key.id)
    (package / "model.sig").write_text(forged)

    with pytest.raises(SignatureRefused, match="does not fit"):
        add(store, package)
    assert nothing_is_kept(store)


def test_the_signature_of_another_package_is_refused(store: Store, package: Path, tmp_path: Path) -> None:
    other = write_package(tmp_path / "other", {**FILES, "policy.py": b"other"})
    sign_package(other, tmp_path / "key.pem")
    (package / "model.sig").write_bytes((other / "model.sig").read_bytes())

    with pytest.raises(SignatureRefused, match="does not fit"):
        add(store, package)
    assert nothing_is_kept(store)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"\xff\xfe",
        b"shmserve model signature 1\n",
        b"shmserve model signature 2\n0123456789abcdef " + b"A" * 86 + b"==\n",
        b"shmserve model signature 1\n0123456789abcdef short\n",
        b"shmserve model signature 1\n0123456789ABCDEF " + b"A" * 86 + b"==\n",
        b"shmserve model signature 1\n\n0123456789abcdef " + b"A" * 86 + b"==\n",
        b"shmserve model signature 1\n" * 1000,
        b"0" * (17 << 10),
    ],
)
def test_a_malformed_signature_file_is_refused(content: bytes, store: Store, package: Path) -> None:
    (package / "model.sig").write_bytes(content)

    with pytest.raises(SignatureRefused, match=r"is not a signature file|bytes, more than 16384"):
        add(store, package)
    assert nothing_is_kept(store)


def test_every_flipped_bit_of_the_signature_is_refused(key: PublicKey, package: Path) -> None:
    files, signature = package_files(package), (package / "model.sig").read_bytes()
    assert check_signature(files, signature, [key]) == key

    for position in range(len(signature)):
        for bit in (1, 4, 64):
            flipped = bytearray(signature)
            flipped[position] ^= bit
            with pytest.raises(SignatureRefused):
                check_signature(files, bytes(flipped), [key])


def test_two_signatures_let_a_key_be_replaced(package: Path, key: PublicKey, tmp_path: Path) -> None:
    first = (package / "model.sig").read_text()
    newer = make_key_pair(tmp_path / "newer.pem")
    sign_package(package, tmp_path / "newer.pem")
    both = first + (package / "model.sig").read_text().splitlines()[1] + "\n"
    files = package_files(package)

    assert check_signature(files, both.encode(), [key]) == key
    assert check_signature(files, both.encode(), [newer]) == newer


def test_the_same_files_signed_again_are_the_same_version_with_the_new_signature(
    key: PublicKey, package: Path, tmp_path: Path
) -> None:
    newer = make_key_pair(tmp_path / "newer.pem")
    store = Store(tmp_path / "models", ingest=ingest_here, signatures=SignaturePolicy(required=True, keys=[key, newer]))
    store.open()
    first = add(store, package)
    sign_package(package, tmp_path / "newer.pem")

    again = add(store, package)
    store.close()
    store = Store(tmp_path / "models", ingest=ingest_here, signatures=SignaturePolicy(required=True, keys=[newer]))
    store.open()

    assert again.digest == first.digest and len(store.versions()) == 1
    asyncio.run(store.check(again))
    store.close()


def test_a_kept_version_is_not_served_once_its_key_is_not_trusted(store: Store, package: Path, tmp_path: Path) -> None:
    store.make_current(add(store, package))
    store.close()
    newer = make_key_pair(tmp_path / "newer.pem")
    stricter = Store(tmp_path / "models", ingest=ingest_here, signatures=SignaturePolicy(required=True, keys=[newer]))
    stricter.open()

    assert asyncio.run(stricter.last_good()) is None
    assert "this service trusts" in stricter.problems[0]
    stricter.close()


def test_without_the_requirement_unsigned_is_taken_and_badly_signed_is_not(
    key: PublicKey, package: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path / "models", ingest=ingest_here, signatures=SignaturePolicy(keys=[key]))
    store.open()
    (package / "policy.py").write_bytes(b"changed")
    with pytest.raises(SignatureRefused):
        add(store, package)
    (package / "model.sig").unlink()

    assert add(store, package).version == content_version(package)
    store.close()


def test_a_requirement_without_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="signature_keys"):
        SignaturePolicy(required=True)


# More than one key


def test_a_signature_may_be_added_while_one_key_follows_another(key: PublicKey, package: Path, tmp_path: Path) -> None:
    second = make_key_pair(tmp_path / "second.pem")

    sign_package(package, tmp_path / "second.pem", add=True)
    sign_package(package, tmp_path / "second.pem", add=True)

    assert (package / "model.sig").read_text().count("\n") == 3
    for trusted in (key, second):
        assert check_signature(package_files(package), (package / "model.sig").read_bytes(), [trusted]) == trusted


def test_a_signature_replaces_the_others_unless_it_is_added(key: PublicKey, package: Path, tmp_path: Path) -> None:
    make_key_pair(tmp_path / "second.pem")

    sign_package(package, tmp_path / "second.pem")

    with pytest.raises(SignatureRefused, match=f"trusts {key.id}"):
        check_signature(package_files(package), (package / "model.sig").read_bytes(), [key])


def test_nothing_is_added_to_what_is_no_signature(key: PublicKey, package: Path, tmp_path: Path) -> None:
    (package / "model.sig").write_text("trust me\n")

    with pytest.raises(SignatureRefused, match=r"model\.sig is not a signature file"):
        sign_package(package, tmp_path / "key.pem", add=True)

    assert (package / "model.sig").read_text() == "trust me\n"


# Releases


def _with_release(key_file: Path, path: Path, release: int) -> Path:
    package = write_package(path, {"release": str(release).encode()})
    sign_package(package, key_file)
    return package


@pytest.mark.fault("T78")
def test_the_highest_release_is_known_after_a_restart_and_after_current_is_lost(key: PublicKey, tmp_path: Path) -> None:
    def open_store() -> Store:
        store = Store(
            tmp_path / "models",
            ingest=ingest_here,
            signatures=SignaturePolicy(required=True, keys=[key]),
            examine=lambda path: int((path / "release").read_text()),
        )
        store.open()
        return store

    packages = [_with_release(tmp_path / "key.pem", tmp_path / str(release), release) for release in (3, 9, 8)]
    store = open_store()
    for package in packages[:2]:
        store.make_current(add(store, package))
    store.make_current(store.versions()[1])  # back to 3: 9 was served all the same
    store.close()

    for lost in (False, True):
        if lost:
            (tmp_path / "models" / "current").write_text("{")
        store = open_store()
        with pytest.raises(DowngradeRefused, match="is release 8, and this service has served release 9"):
            add(store, packages[2])
        assert len(store.versions()) == 2
        store.close()


def test_without_required_signatures_any_release_goes(tmp_path: Path) -> None:
    """Whoever could bring an old package back could change its number as well."""
    store = Store(tmp_path / "models", ingest=ingest_here, examine=lambda path: int((path / "release").read_text()))
    store.open()
    for release in (9, 3):
        store.make_current(add(store, write_package(tmp_path / str(release), {"release": str(release).encode()})))
    assert [version.release for version in store.versions()] == [3, 9]
    store.close()
