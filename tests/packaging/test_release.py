"""What a release is made with: locks, targets, and what each door repeats of pyproject.toml. The long test builds twice."""

from __future__ import annotations

import dataclasses
import io
import platform
import re
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from release.interpreters import examine, versions
from release.lock import FILES, FOLDER
from release.sbom import with_torch
from release.source import build_source, reproducible
from release.targets import Target, assertions, check_headers
from release.wheels import build_all, build_wheel, check_core
from shmserve.daemon.config.config import Config
from tests.packaging.test_repository_files import project
from tests.support.folders import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Locks


@pytest.mark.parametrize("name", FILES)
def test_a_lock_has_a_hash_for_each_package_and_names_no_place(name: str) -> None:
    text = (FOLDER / name).read_text()
    entries = re.split(r"^(?=\w)", text, flags=re.MULTILINE)[1:]

    assert entries
    for entry in entries:
        assert re.match(r"[\w.-]+==\S+", entry) and "--hash=sha256:" in entry, entry[:80]
    assert not re.search(r"://|^--|-index|find-links", re.sub(r"--require-hashes --no-deps -r|--hash", "", text))
    assert not re.search(r"^(torch|triton|nvidia|cuda)\b", text, re.MULTILINE)


def of_python(python: str) -> dict[str, Any]:
    """Return this machine's markers with another Python."""
    return {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}


def locked(name: str, python: str) -> dict[str, str]:
    """Return the versions of a lock for one Python."""
    environment = of_python(python)
    lines = re.findall(r"^(\w[^\\\n]*?) *\\$", (FOLDER / name).read_text(), re.MULTILINE)
    pins = [pin for pin in map(Requirement, lines) if pin.marker is None or pin.marker.evaluate(environment)]
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}


def required(extra: str, python: str) -> list[Requirement]:
    """Return what an extra of pyproject.toml asks for with one Python, through the extras that it names."""
    environment = of_python(python)
    found = [Requirement(line) for line in [*project()["dependencies"], *project()["optional-dependencies"][extra]]]
    kept = [one for one in found if one.marker is None or one.marker.evaluate(environment)]
    inner = [more for one in kept if one.name == "shmserve" for name in one.extras for more in required(name, python)]
    return [one for one in kept if one.name != "shmserve"] + inner


@pytest.mark.parametrize("python", versions())
@pytest.mark.parametrize("extra", ["dev", "daemon"])
def test_a_lock_has_what_the_project_asks_for(extra: str, python: str) -> None:
    pins = locked(f"{extra}.txt", python)

    asked = [one for one in required(extra, python) if one.name != "torch"]
    assert len(asked) > 5
    for one in asked:
        version = pins.get(canonicalize_name(one.name))
        assert version is not None and one.specifier.contains(version), f"{one}, locked: {version}: make lock"


def test_the_build_requirements_are_those_of_the_project() -> None:
    inputs = (FOLDER / "build.in").read_text().splitlines()
    build = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["build-system"]

    assert [line for line in inputs if not line.startswith("#")] == build["requires"]


# Wheels


def wheel(folder: Path, files: dict[str, bytes]) -> Path:
    made = folder / "shmserve-0.1.0-cp311-cp311-linux_x86_64.whl"
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made


def elf(machine: int) -> bytes:
    return b"\x7fELF".ljust(18, b"\0") + machine.to_bytes(2, "little")


def test_a_wheel_with_its_core_passes(tmp_path: Path) -> None:
    check_core(wheel(tmp_path, {"shmserve/_core.cpython-311-x86_64-linux-gnu.so": elf(62)}), Target("x86_64"), "3.11")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"shmserve/__init__.py": b""}, "its extensions are none"),
        ({"shmserve/_core.cpython-310-x86_64-linux-gnu.so": elf(62)}, "must hold shmserve/_core.cpython-311"),
        ({"shmserve/_core.cpython-311-x86_64-linux-gnu.so": elf(183)}, "is for ELF machine 183, not for x86_64"),
    ],
    ids=["none", "another Python's", "another processor's"],
)
def test_a_wheel_without_its_core_ends_the_build(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        check_core(wheel(tmp_path, files), Target("x86_64"), "3.11")


def test_what_is_missing_is_named_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("release.wheels.find", lambda version: None)
    monkeypatch.setattr("release.wheels.build_source", lambda commit, out, work: tmp_path / "shmserve.tar.gz")
    monkeypatch.setenv("PATH", str(tmp_path))

    built = build_all("HEAD", tmp_path, ["3.10", "3.99"], ["aarch64"])

    said = capsys.readouterr().out
    assert built == []
    assert "missing: wheels for CPython 3.99: no python3.99" in said and "CPython 3.10" in said
    if Target("aarch64").missing():
        assert "gcc" in said and "apt-get install gcc" in said


def test_a_command_that_is_no_such_python_is_none(tmp_path: Path) -> None:
    shim = tmp_path / "python3.11"
    shim.write_text("#!/bin/sh\necho not installed >&2; exit 127\n")
    shim.chmod(0o755)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"

    assert examine(str(shim), "3.11") is None
    assert examine(sys.executable, "3.99") is None
    if Path(sysconfig.get_path("include"), "Python.h").exists():
        assert examine(sys.executable, here) == sys.executable


def test_the_sizes_of_pyconfig_are_compared_with_the_compiler(tmp_path: Path) -> None:
    target = Target("x86_64")
    if not target.is_native or target.missing():
        pytest.skip("needs gcc on x86-64")
    given = Path(sysconfig.get_path("include"), "pyconfig.h")
    if not given.exists() or "SIZEOF_LONG" not in given.read_text():
        pytest.skip("this Python has no complete pyconfig.h")

    check_headers(target, given.parent)
    (tmp_path / "pyconfig.h").write_text(re.sub(r"(#define SIZEOF_LONG) \d+", r"\1 4", given.read_text()))
    with pytest.raises(SystemExit, match="does not hold for x86_64"):
        check_headers(target, tmp_path)
    (tmp_path / "pyconfig.h").write_text("#include <x86_64-linux-gnu/python3.11/pyconfig.h>\n")
    with pytest.raises(SystemExit, match="states no sizes"):
        check_headers(target, tmp_path)
    assert assertions("") == assertions("#define HAVE_X 1\n")


# The source distribution


def packed(order: list[str], time: int, user: str) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as files:
        for name in order:
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.uname, member.mode = len(name), time, user, 0o664
            files.addfile(member, io.BytesIO(name.encode()))
    return archive.getvalue()


def test_a_source_distribution_says_nothing_of_its_machine() -> None:
    first = reproducible(packed(["a", "b"], 1, "somebody"), 5)

    assert first == reproducible(packed(["b", "a"], 2, "another"), 5)
    assert first != reproducible(packed(["a", "b"], 1, "somebody"), 6)
    with tarfile.open(fileobj=io.BytesIO(first)) as files:
        found = [(member.name, member.mtime, member.uname, member.mode) for member in files.getmembers()]
        assert found == [("a", 5, "", 0o644), ("b", 5, "", 0o644)]
        read = files.extractfile("b")
        assert read is not None and read.read() == b"b"


# The bill of materials


def test_the_bill_names_torch_and_no_file_of_the_machine() -> None:
    references = [{"url": "file:///tmp/x.whl", "type": "distribution"}, {"url": "https://numpy.org", "type": "website"}]
    found: dict[str, Any] = {
        "metadata": {"component": {"bom-ref": "root"}},
        "components": [{"name": "numpy", "externalReferences": references}],
        "dependencies": [{"ref": "root", "dependsOn": ["numpy==2"]}],
    }

    made = with_torch(found, "torch>=2.10")

    assert made["components"][0]["externalReferences"] == references[1:]
    assert made["components"][1]["name"] == "torch" and "torch>=2.10" in made["components"][1]["description"]
    assert {"ref": "root", "dependsOn": ["numpy==2", "torch"]} in made["dependencies"]


# What the other doors repeat


def test_the_recipe_and_the_ros_package_have_the_version_of_the_project() -> None:
    version = project()["version"]
    ros = REPOSITORY / "ros/shmserve_ros"

    assert f'  version: "{version}"\n' in (REPOSITORY / "release/conda/recipe.yaml").read_text()
    assert f"<version>{version}</version>" in (ros / "package.xml").read_text()
    assert f'version="{version}"' in (ros / "setup.py").read_text()


def test_the_recipe_asks_for_what_the_project_asks_for() -> None:
    recipe = (REPOSITORY / "release/conda/recipe.yaml").read_text()
    conda_names = {"torch": "pytorch"}

    for one in required("daemon", "3.11") + required("daemon", "3.10"):
        name = conda_names.get(one.name, one.name)
        assert f" {name} {one.specifier}\n" in recipe, one


def test_the_workflow_of_the_wheels_has_every_python() -> None:
    workflow = (REPOSITORY / ".github/workflows/wheels.yml").read_text()

    assert sorted(re.findall(r"^ +(3\.\d+)$", workflow, re.MULTILINE)) == versions()


def test_the_images_name_settings_that_exist_and_run_as_one_user() -> None:
    daemon, client = (
        (REPOSITORY / f"release/containers/Containerfile.{name}").read_text() for name in ("daemon", "client")
    )
    settings = {field.name for field in dataclasses.fields(Config)}

    named = re.findall(r"SHMSERVE_(\w+)=", daemon)
    assert "transport" in map(str.lower, named) and {name.lower() for name in named} <= settings
    assert re.findall(r"--uid (\d+)", daemon) == re.findall(r"--uid (\d+)", client) == ["10001"]


@pytest.mark.long
def test_two_builds_of_a_commit_have_the_same_bytes(tmp_path: Path) -> None:
    target = Target(platform.machine())
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if target.missing() or not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("needs gcc and the Python headers")
    sources, wheels = [], []
    for name in ("first", "another folder"):
        for part in ("source", "wheel"):
            (tmp_path / name / part).mkdir(parents=True)
        source = build_source("HEAD", tmp_path / name, tmp_path / name / "source")
        sources.append(source.read_bytes())
        wheels.append(
            build_wheel(sys.executable, python, target, source, 10**9, tmp_path / name / "wheel").read_bytes()
        )

    assert sources[0] == sources[1]
    assert wheels[0] == wheels[1]
