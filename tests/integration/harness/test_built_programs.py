"""Programs of the tests are compiled once, and again after a change of what they are made of."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import built_programs
from tests.support.c_library import require_compiler

Change = Callable[[Path], object]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    require_compiler()
    monkeypatch.setattr(built_programs, "REPOSITORY", tmp_path)
    monkeypatch.setattr(built_programs, "FOLDER", tmp_path / "built")
    (tmp_path / "include").mkdir()
    (tmp_path / "include/number.h").write_text("#define NUMBER 3\n")
    source = tmp_path / "number.c"
    source.write_text("#include <number.h>\nint main(void) { return NUMBER; }\n")
    return source


def build(source: Path, *flags: str) -> Path:
    return built_programs.built(source, ["gcc", *flags, f"-I{source.parent}/include", str(source)])


def result(program: Path) -> int:
    return subprocess.run([program], check=False).returncode


def test_the_same_program_is_not_built_again(source: Path) -> None:
    made = build(source).stat().st_ino

    assert build(source).stat().st_ino == made
    assert build(source, "-O1").stat().st_ino != made
    assert build(source).stat().st_ino == made


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "include/number.h").write_text("#define NUMBER 4\n"),
        lambda folder: (folder / "number.c").write_text("int main(void) { return 4; }\n"),
        lambda folder: (folder / "number.h").write_text("#define NUMBER 4\n"),
    ],
    ids=["a header's text", "the source's text", "a header beside the source"],
)
def test_a_change_builds_it_again(source: Path, change: Change) -> None:
    source.write_text(source.read_text().replace("<number.h>", '"number.h"'))
    assert result(build(source)) == 3

    change(source.parent)

    assert result(build(source)) == 4


def test_a_failed_build_leaves_the_previous_program_to_nobody(source: Path) -> None:
    build(source)
    source.write_text("no program\n")

    for _ in range(2):
        with pytest.raises(subprocess.CalledProcessError):
            build(source)
