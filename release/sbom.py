"""Software bill of materials of a release (CycloneDX), for a daemon and its dependencies.

    python -m release.sbom dist

The components are the packages of release/requirements/daemon.txt, as they are installed for the Python that runs this
program. The wheels themselves hold no code of others. PyTorch is named without a version, because the operator chooses its
build.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from release.source import ROOT, epoch

_TOOLS = Path(sys.executable).parent

_VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read())
sys.exit(str(fault) if fault else 0)
"""


def call(*command: object) -> None:
    variables = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch("HEAD")), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    ran = subprocess.run(list(map(str, command)), env=variables, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise SystemExit(f"sbom: {command[0]} failed:\n{ran.stdout}{ran.stderr}")


def torch_requirement(pyproject: str) -> str:
    """Return what pyproject.toml asks of PyTorch.

    >>> torch_requirement('daemon = ["torch>=2.10", "click"]')
    'torch>=2.10'
    """
    found = re.search(r'"(torch[<>=][^"]*)"', pyproject)
    if found is None:
        raise SystemExit("sbom: pyproject.toml asks for no torch")
    return found[1]


def with_torch(found: dict[str, Any], requirement: str) -> dict[str, Any]:
    """Add PyTorch to a bill, and remove what names a file of the machine that made it."""
    root = found["metadata"]["component"]["bom-ref"]
    for component in found["components"]:
        references = component.get("externalReferences", [])
        component["externalReferences"] = [one for one in references if not one["url"].startswith("file:")]
    torch = {"type": "library", "name": "torch", "bom-ref": "torch", "purl": "pkg:pypi/torch"}
    torch["description"] = f"{requirement}; its build (CPU, CUDA, Jetson) is chosen where the daemon is installed"
    found["components"].append(torch)
    found["dependencies"].append({"ref": "torch"})
    for entry in found["dependencies"]:
        if entry["ref"] == root:
            entry["dependsOn"] = sorted([*entry.get("dependsOn", []), "torch"])
    return found


def main() -> None:
    (out,) = map(Path, sys.argv[1:])
    pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
    with tempfile.TemporaryDirectory(prefix="shmserve-sbom-") as name:
        environment, bill = Path(name) / "environment", Path(name) / "bill.json"
        call(sys.executable, "-m", "venv", "--without-pip", environment)
        python = environment / "bin/python"
        requirements = ROOT / "release/requirements/daemon.txt"
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
        call(*pip, "--require-hashes", "--no-deps", "-r", requirements)
        made = [_TOOLS / "cyclonedx-py", "environment", "--pyproject", ROOT / "pyproject.toml", "--output-reproducible"]
        call(*made, "--of", "JSON", "-o", bill, python)
        found = with_torch(json.loads(bill.read_text("utf-8")), torch_requirement(pyproject))
        component = found["metadata"]["component"]
        text = json.dumps(found, indent=2, sort_keys=True) + "\n"
        if name in text:
            raise SystemExit("sbom: it names a folder of this machine")
        out.mkdir(parents=True, exist_ok=True)
        written = out / f"{component['name']}-{component['version']}.cdx.json"
        written.write_text(text)
        call(sys.executable, "-c", _VALIDATE, written)
        print(f"{written.name}: {len(found['components'])} components")


if __name__ == "__main__":
    main()
