"""Text files as editors on other systems write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from shmserve.daemon.config.config import ConfigError
from shmserve.daemon.config.sources import Settings
from shmserve.daemon.packages.manifest import read_manifest
from shmserve.errors import ModelPackageError
from shmserve.package_signature import KeyUnusable, PublicKey

_MANIFEST = '[model]\r\nname = "arm"\r\n'


def _settings(file: Path) -> Settings:
    return Settings("arm", {"runtime_dir": file.parent, "state_dir": file.parent}, flags={}, environment={}, file=file)


def test_a_byte_order_mark_and_line_ends_of_windows_are_taken(tmp_path: Path) -> None:
    (tmp_path / "policy.py").touch()
    (tmp_path / "model.toml").write_bytes(_MANIFEST.encode("utf-8-sig"))
    (tmp_path / "arm.toml").write_bytes(b"\xef\xbb\xbfmax_clients = 3\r\n")
    key = "A" * 43 + "="
    (tmp_path / "key").write_bytes(b"\xef\xbb\xbf" + key.encode() + b"\r\n")

    assert read_manifest(tmp_path)["name"] == "arm"
    assert _settings(tmp_path / "arm.toml").read().max_clients == 3
    assert str(PublicKey.read(str(tmp_path / "key"))) == key


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_refused_in_words(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "policy.py").touch()
    (tmp_path / "model.toml").write_bytes(_MANIFEST.encode(encoding))
    (tmp_path / "arm.toml").write_bytes("max_clients = 3\n".encode(encoding))
    (tmp_path / "key").write_bytes(("A" * 43 + "=").encode(encoding))

    with pytest.raises(ModelPackageError, match=r"model\.toml is not TOML: it is UTF-16 .* save it as UTF-8"):
        read_manifest(tmp_path)
    with pytest.raises(ConfigError, match=r"arm\.toml is not TOML: it is UTF-16 .* save it as UTF-8"):
        _settings(tmp_path / "arm.toml").read()
    with pytest.raises(KeyUnusable, match="it is UTF-16"):
        PublicKey.read(str(tmp_path / "key"))
