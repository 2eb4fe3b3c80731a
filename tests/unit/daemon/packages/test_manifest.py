"""Model packages as they are read: what model.toml may say, and what a directory without one is taken for."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from shmserve.daemon.packages.formats import FORMATS
from shmserve.daemon.packages.package import ModelPackage
from shmserve.errors import ModelPackageError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A package that lacks nothing but a manifest and a model."""
    path = tmp_path / "lift"
    path.mkdir()
    for name in ("example.npz", "expected.npz", "weights.safetensors"):
        (path / name).write_bytes(b"not looked at here")
    return path


def write(directory: Path, manifest: str, *files: str) -> Path:
    (directory / "model.toml").write_text(manifest)
    for name in files:
        (directory / name).touch()
    return directory


def refusal(directory: Path, **settings: Any) -> str:
    with pytest.raises(ModelPackageError) as caught:
        ModelPackage.read(directory, **settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("file", "name"), [("model.pt2", "torch-export"), ("model.pt", "torchscript"), ("policy.py", "python")]
)
def test_a_directory_without_a_manifest_is_recognised_by_its_file(directory: Path, file: str, name: str) -> None:
    (directory / file).touch()

    package = ModelPackage.read(directory)

    assert (package.name, package.format, package.max_batch) == ("lift", name, 1)
    assert package.entry == ("policy:Policy" if name == "python" else "")


@pytest.mark.parametrize("files", [("model.pt2", "model.pt"), ("model.pt", "policy.py"), ("model.pt2", "policy.py")])
def test_a_directory_of_two_models_is_refused_naming_both(directory: Path, files: tuple[str, str]) -> None:
    for name in files:
        (directory / name).touch()

    assert f"holds {files[0]} and {files[1]}" in refusal(directory)


def test_a_manifest_decides_between_two_models(directory: Path) -> None:
    write(directory, '[model]\nformat = "torchscript"', "model.pt2", "model.pt", "policy.py")

    assert ModelPackage.read(directory).format == "torchscript"


def test_a_manifest_without_a_format_leaves_it_to_the_content(directory: Path) -> None:
    write(directory, '[model]\nname = "other"', "model.pt2")

    package = ModelPackage.read(directory)

    assert (package.name, package.format) == ("other", "torch-export")


def test_an_entry_without_a_format_means_a_python_class(directory: Path) -> None:
    write(directory, '[model]\nentry = "act.policy:Act"', "model.pt")

    package = ModelPackage.read(directory)

    assert (package.format, package.entry) == ("python", "act.policy:Act")


def test_an_empty_directory_is_refused_naming_what_it_could_hold(directory: Path) -> None:
    text = refusal(directory)

    for name in ("model.toml", "model.pt2", "model.pt", "policy.py"):
        assert name in text


def test_a_path_that_is_not_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert "is not a directory" in refusal(tmp_path / "file")
    assert "does not exist" in refusal(tmp_path / "nothing")


def test_every_key_of_a_saved_module_is_read(directory: Path) -> None:
    write(
        directory,
        """
        [model]
        name = "reach"
        format = "torch-export"
        inputs = ["observation.image", "state"]
        outputs = ["actions"]
        batch_dim = true
        max_batch = 8
        read_in_place = true
        deterministic = true
        [warmup]
        example = "example.npz"
        expected = "expected.npz"
        tolerance = { atol = 0.5, rtol = 0 }
        allow_nonfinite = true
        [metadata]
        control_rate_hz = 50
        """,
        "model.pt2",
    )

    package = ModelPackage.read(directory)

    assert dataclasses.replace(package, path=Path()) == ModelPackage(
        path=Path(),
        name="reach",
        format="torch-export",
        inputs=("observation.image", "state"),
        outputs=("actions",),
        batch_dim=True,
        max_batch=8,
        read_in_place=True,
        deterministic=True,
        grad=False,
        example="example.npz",
        expected="expected.npz",
        atol=0.5,
        rtol=0.0,
        allow_nonfinite=True,
        metadata={"control_rate_hz": 50},
    )


def test_every_key_of_a_class_is_read(directory: Path) -> None:
    write(
        directory,
        '[model]\nformat = "python"\nentry = "a:B"\nmax_batch = 4\nstateful = true\nweights = "weights.safetensors"'
        "\nreal_time_chunking = true",
    )

    package = ModelPackage.read(directory)

    assert (package.entry, package.max_batch, package.stateful) == ("a:B", 4, True)
    assert package.weights == "weights.safetensors"
    assert package.real_time_chunking


PYTHON, EXPORTED = '[model]\nformat = "python"\n', '[model]\nformat = "torch-export"\n'


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        ("[model", "is not TOML"),
        ("model = 1", "model must be a table"),
        ("x = " + "1" * 5000, "is not TOML"),
        ("x = " + "[" * 5000, "nested too deeply"),
        (PYTHON + f'weights = "{"w" * 5000}"', "the package holds no such file"),
        (PYTHON + "max_batch = '" + "1" * 5000 + "'", "max_batch = '111"),
        (PYTHON + "name = 0x" + "f" * 5000, "name = an integer of 20000 bits must be a string"),
        ("#" * (1 << 20) + "#", "has 1048577 bytes, more than 1048576"),
        ("[models]", "'models' is not a table; did you mean 'model'?"),
        ("[model]\nmax_bach = 1", "'max_bach' is not a key of [model]; did you mean 'max_batch'?"),
        ('[warmup]\nexemple = "x"', "'exemple' is not a key of [warmup]; did you mean 'example'?"),
        ("[model]\nmax_batch = '1'", "max_batch = '1' must be an integer"),
        ("[model]\nmax_batch = true", "max_batch = True must be an integer"),
        ("[model]\nstateful = 1", "stateful = 1 must be true or false"),
        ("[model]\nmax_batch = 0", "max_batch = 0 must be 1 or more"),
        ("[warmup]\nrounds = 0", "[warmup] rounds = 0 must be 1 to 1000"),
        ("[warmup]\nrounds = 1001", "[warmup] rounds = 1001 must be 1 to 1000"),
        (
            '[model]\nformat = "onnx"',
            "format = 'onnx' must be one of torch-export, aoti, torchscript, python, installed",
        ),
        ('[model]\nentry = "policy.Policy"', "must be module:class"),
        ('[model]\nentry = "../policy:Policy"', "must be module:class"),
        ('[model]\nformat = "installed"', "needs entry"),
        (EXPORTED + 'inputs = "image"', "inputs = 'image' must be a list of strings"),
        (EXPORTED + "inputs = []", "inputs = [] must be a list of different names"),
        (EXPORTED + "inputs = [1]", "inputs = [1] must be a list of different names"),
        (EXPORTED + 'outputs = ["a", "a"]', "must be a list of different names"),
        (EXPORTED + "max_batch = 2", "max_batch = 2 needs batch_dim = true"),
        (EXPORTED + "max_batch = 2\nbatch_dim = true\nstateful = true", "takes one request at a time"),
        (EXPORTED + 'entry = "policy:Policy"', "entry is for format python or installed; this is 'torch-export'"),
        (
            PYTHON + "real_time_chunking = true\n[checks.observation.inference_delay]\nmin = 0\nmax = 9",
            "[checks.observation.inference_delay] would refuse every observation with nothing to continue",
        ),
        (EXPORTED + "real_time_chunking = true", "real_time_chunking is for format python or installed"),
        (
            PYTHON + "cuda_graph = true\nreal_time_chunking = true",
            "rows left over of a chunk are others in each request",
        ),
        (EXPORTED + 'weights = "weights.safetensors"', "weights is for format python or installed"),
        (PYTHON + 'inputs = ["x"]', "inputs is for format torch-export or aoti or torchscript; this is 'python'"),
        (PYTHON + "batch_dim = true", "batch_dim is for format torch-export or aoti or torchscript"),
        (PYTHON + 'weights = "absent.safetensors"', "weights = 'absent.safetensors': the package holds no such file"),
        (PYTHON + 'weights = "../weights"', "must be the name of a file in the package"),
        (PYTHON + '[warmup]\nexample = "/etc/hostname"', "must be the name of a file in the package"),
        (PYTHON + '[warmup]\nexpected = "absent.npz"', "the package holds no such file"),
        (PYTHON + "[warmup]\ntolerance = 0.1", "tolerance = 0.1 must be a table"),
        (PYTHON + "[warmup]\ntolerance = { abs = 1 }", "'abs' is not a key of tolerance"),
        (PYTHON + "[warmup]\ntolerance = { atol = -1 }", "atol = -1 must be a number, 0 or more"),
        (PYTHON + "[warmup]\ntolerance = { rtol = inf }", "rtol = inf must be a number"),
        (PYTHON + "[warmup]\ntolerance = { rtol = nan }", "rtol = nan must be a number"),
        ("contract = 1", "contract must be a table ([contract])"),
        (PYTHON + "[contract]\nrate = 50", "model.toml: contract has no key 'rate'; did you mean 'rate_hz'?"),
        (PYTHON + '[contract.observation.state]\nunits = ""', "contract.observation.state.units = '' must be a text"),
        (PYTHON + '[contract.observation.arm.left]\nunits = "m"', "quote the name of an entry with dots"),
        (PYTHON + "cuda_graph = true\n[contract.observation]\npoints = [-1, 3]", "a graph is recorded for one size"),
    ],
)
def test_a_mistake_in_the_manifest_is_named_with_its_remedy(directory: Path, manifest: str, says: str) -> None:
    write(directory, manifest, "model.pt2")

    text = refusal(directory)

    assert says in text
    assert str(directory / "model.toml") in text
    assert len(text) < 600


def test_a_saved_module_that_is_not_there_is_missed(directory: Path) -> None:
    write(directory, '[model]\nformat = "torchscript"')

    assert "holds no model.pt, which format 'torchscript' needs" in refusal(directory)


def test_a_manifest_that_is_not_text_is_refused(directory: Path) -> None:
    (directory / "model.toml").write_bytes(b"\xff\xfe")

    assert "is not TOML" in refusal(directory)


@pytest.mark.fault("T76")
@pytest.mark.parametrize("name", sorted(FORMATS.keys() - {"lerobot"}))  # test_lerobot_checkpoint.py has that one
def test_without_allow_code_only_a_format_that_brings_no_code_is_read(directory: Path, name: str) -> None:
    entry = {
        "installed": 'entry = "reach"',
        "aoti": '[warmup]\nexample = "example.npz"',
        "remote": '[remote]\ntarget = "unix:///run/x.sock"\napplication = "arm"\nversion = "3f9c2d17a0b14e55"',
    }.get(name, "")
    write(directory, f'[model]\nformat = "{name}"\n{entry}', "model.pt2", "model.pt", "policy.py")

    assert ModelPackage.read(directory, allow_code=True).format == name
    if name in ("installed", "remote"):
        assert ModelPackage.read(directory, allow_code=False).format == name
    else:
        text = refusal(directory, allow_code=False)
        assert re.search(f"format '{name}' can run code .* allow_code is false.* format installed", text)
