"""Packages of AOTInductor: recognition, refusals, and (long: it needs a C++ compiler) code that was compiled."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.daemon.engine.models import load_model
from shmserve.daemon.engine.warmup.warmup import warm_up
from shmserve.daemon.packages.package import ModelPackage
from shmserve.errors import ContractMismatch, ModelPackageError
from tests.support.packages import networks
from tests.support.packages.networks import IMAGE_SHAPE, seeded
from tests.support.packages.saving import CPU, loaded, package

HERE = {"AOTI_DEVICE_KEY": "cpu", "AOTI_MACHINE": platform.machine()}
MANIFEST = '[model]\ninputs = ["state"]\n[warmup]\nexample = "example.npz"\n'


def archive(
    directory: Path, manifest: str = MANIFEST, *, models: tuple[str, ...] = ("model",), **made_for: str
) -> Path:
    """A package whose model.pt2 has the members that torch writes, but no code that can be loaded."""
    with zipfile.ZipFile(directory / "model.pt2", "w") as members:
        for name in models:
            folder = f"model/data/aotinductor/{name}"
            members.writestr(f"{folder}/c7x.wrapper_metadata.json", json.dumps({**HERE, **made_for}))
            members.writestr(f"{folder}/c7x.wrapper.so", b"\x7fELF but not for long")
        members.writestr("model/archive_format", "pt2")
    np.savez(directory / "example.npz", state=np.ones(2, np.float32))
    if manifest:
        (directory / "model.toml").write_text(manifest)
    return directory


def refused(directory: Path, device: torch.device = CPU) -> str:
    with pytest.raises(ModelPackageError) as caught:
        load_model(ModelPackage.read(directory), device)
    return str(caught.value)


# Recognition


def test_compiled_code_is_told_from_an_exported_program_by_its_content(tmp_path: Path) -> None:
    assert ModelPackage.read(archive(tmp_path)).format == "aoti"


def test_an_archive_that_also_holds_the_program_is_the_program(tmp_path: Path) -> None:
    with zipfile.ZipFile(archive(tmp_path) / "model.pt2", "a") as members:
        members.writestr("model/models/model.json", "{}")

    assert ModelPackage.read(tmp_path).format == "torch-export"


@pytest.mark.parametrize("content", [b"", b"PK\5\6", b"PK\5\6" + b"\xff" * 18, b"model/data/aotinductor/" * 9])
def test_a_damaged_archive_is_left_to_torch(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(content)

    assert ModelPackage.read(tmp_path).format == "torch-export"


def test_a_program_in_the_manifest_and_code_in_the_file_disagree(tmp_path: Path) -> None:
    text = refused(archive(tmp_path, '[model]\nformat = "torch-export"'))

    assert 'holds code that AOTInductor compiled, not a program: write format = "aoti"' in text


def test_code_in_the_manifest_and_a_program_in_the_file_disagree(tmp_path: Path) -> None:
    package(
        tmp_path, "model.pt2", "doubled", '[model]\nformat = "aoti"\n' + MANIFEST.partition("\n")[2], state=np.ones(2)
    )

    assert "holds no code that AOTInductor compiled: make it with torch._inductor.aoti_compile" in refused(tmp_path)


# What is refused


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ("", r'does not say which dtypes and shapes it takes: .* \[warmup\] example = "example.npz"'),
        ("[model]\nmax_batch = 2\nbatch_dim = true", "takes one request at a time"),
        ("[model]\nstateful = true", "cannot be stateful, because nothing restores its buffers"),
    ],
)
def test_what_compiled_code_cannot_do_is_refused_before_it_is_loaded(manifest: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelPackageError, match=said):
        ModelPackage.read(archive(tmp_path, manifest))


def test_without_allow_code_it_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ModelPackageError, match="format 'aoti' can run code"):
        ModelPackage.read(archive(tmp_path), allow_code=False)


def test_code_for_another_device_is_refused_by_name(tmp_path: Path) -> None:
    assert "was compiled for cuda, and this engine runs on cpu" in refused(archive(tmp_path, AOTI_DEVICE_KEY="cuda"))


def test_code_for_another_machine_is_refused_by_name(tmp_path: Path) -> None:
    text = refused(archive(tmp_path, AOTI_MACHINE="riscv64"))

    assert f"was compiled for riscv64, and this machine is {platform.machine()}: compile it here" in text


def test_code_for_instructions_that_this_cpu_lacks_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_f": False}, raising=False)

    text = refused(archive(tmp_path, AOTI_CPU_ISA="AVX2 AVX512 OF_TOMORROW"))

    assert "was compiled for a CPU with AVX512, which this one lacks" in text


def test_several_models_in_one_archive_are_refused_with_their_names(tmp_path: Path) -> None:
    assert "holds 2 compiled models, act, look: package one alone" in refused(archive(tmp_path, models=("look", "act")))


def test_a_library_that_cannot_be_loaded_is_refused_with_the_reason_and_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    text = refused(archive(tmp_path))

    assert "cannot be loaded by torch" in text and "compile it with this version of torch" in text
    assert list(temporary.iterdir()) == []
    assert os.environ["TMPDIR"] == str(temporary)


# Code that was compiled


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what tests/support/packages/compiling.py writes: minutes, where the machine is busy."""
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler: apt-get install g++")
    folder = tmp_path_factory.mktemp("compiled")
    subprocess.run(
        [sys.executable, "-m", "tests.support.packages.compiling", folder],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"), "TORCHINDUCTOR_COMPILE_THREADS": "1"},
        check=True,
    )
    return folder


def in_package(directory: Path, code: Path, manifest: str, **example: Any) -> Path:
    directory.mkdir(exist_ok=True)
    shutil.copyfile(code, directory / "model.pt2")
    np.savez(directory / "example.npz", **example)
    (directory / "model.toml").write_text(f'{manifest}\n[warmup]\nexample = "example.npz"\n')
    return directory


def observation() -> dict[str, Any]:
    dice = np.random.default_rng(3)
    return {"image": dice.integers(0, 256, IMAGE_SHAPE, np.uint8), "state": np.array([0.25, -1.5], np.float32)}


def tensors(seen: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in seen.items()}


REACH = '[model]\nbatch_dim = true\ninputs = ["image", "state"]\noutputs = ["actions"]'


@pytest.mark.long
def test_compiled_code_serves_and_its_files_are_removed(compiled: Path, tmp_path: Path) -> None:
    seen = observation()
    model, found = loaded(in_package(tmp_path, compiled / "reach.pt2", REACH, **seen))

    (action,) = model.infer([tensors(seen)])

    network = seeded(networks.Reach)
    torch.testing.assert_close(action["actions"], network(*(value[None] for value in tensors(seen).values()))[0])
    assert warm_up(model, CPU, found).action == {"actions": {"dtype": "float32", "shape": [4]}}
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "/data/aotinductor/" in line]
    assert mapped and all(line.endswith("(deleted)") for line in mapped)


@pytest.mark.long
def test_compiled_code_of_one_dict_takes_the_observation(compiled: Path, tmp_path: Path) -> None:
    seen = observation()
    model, _ = loaded(in_package(tmp_path, compiled / "reach_named.pt2", "[model]\nbatch_dim = true", **seen))

    (action,) = model.infer([{**tensors(seen), "task": "lift"}])

    assert list(action) == ["actions", "effort"]


@pytest.mark.long
def test_an_array_that_the_code_was_not_compiled_for_never_reaches_it(compiled: Path, tmp_path: Path) -> None:
    seen = observation()
    model, _ = loaded(in_package(tmp_path, compiled / "reach.pt2", REACH, **seen))

    with pytest.raises(ContractMismatch) as caught:
        model.infer([{"image": torch.zeros(IMAGE_SHAPE), "state": torch.zeros(3)}])

    assert str(caught.value) == (
        "image: expected uint8[12, 16, 3], got float32[12, 16, 3]; state: expected float32[2], got float32[3]"
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("manifest", "changed", "said"),
    [
        (
            REACH,
            {"image": np.zeros(IMAGE_SHAPE, np.float32)},
            "image: the code was compiled for another array: unmatched",
        ),
        (REACH, {"state": np.zeros(3, np.float32)}, "state: the code was compiled for another array: unmatched dim"),
        (REACH.replace("batch_dim = true\n", ""), {}, "refuses the example example.npz"),
        ("[model]\nbatch_dim = true", {}, 'what its 2 arguments are called: .*, inputs = \\["image", "state"\\]'),
        (REACH.replace('"state"', '"joints"'), {}, "has no entry 'joints'"),
        (REACH.replace(', "state"', ""), {}, "inputs names 1 arguments, the compiled code takes 2"),
        (REACH.replace('"actions"', '"a", "b"'), {}, "the module returns 1 value"),
    ],
)
def test_an_example_or_a_manifest_that_does_not_fit_is_refused(
    manifest: str, changed: dict[str, Any], said: str, compiled: Path, tmp_path: Path
) -> None:
    directory = in_package(tmp_path, compiled / "reach.pt2", manifest, **{**observation(), **changed})

    with pytest.raises(ModelPackageError, match=said):
        loaded(directory)


@pytest.mark.long
def test_compiled_code_that_keeps_state_is_refused(compiled: Path, tmp_path: Path) -> None:
    directory = in_package(tmp_path, compiled / "remembering.pt2", "[model]", state=np.ones(2, np.float32))

    assert "keeps state from one call to the next" in refused(directory)
