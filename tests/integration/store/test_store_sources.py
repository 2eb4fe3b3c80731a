"""Versions from a directory and from tars."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.archives.packages import write_package
from tests.support.archives.stores import Open, add, entries, expected_entries

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


def test_a_directory_a_tar_and_a_tar_with_a_folder_are_the_same_version(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    write_package(tmp_path / "arm")
    subprocess.run(["tar", "-C", tmp_path / "arm", "-cf", tmp_path / "plain.tar", "."], check=True)
    subprocess.run(["tar", "-C", tmp_path, "-czf", tmp_path / "folder.tgz", "arm"], check=True)

    versions = {add(store, tmp_path / name).digest for name in ("arm", "plain.tar", "folder.tgz")}

    assert versions == {store.versions()[0].digest}
    assert entries(tmp_path) == expected_entries(store)
