"""Prints what pyproject.toml says that the daemon and the client need, for pip."""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def main() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
    print("# What the daemon needs beside this package: pip install -r, in the environment of /etc/default/shmserve.")
    print("\n".join([*project["dependencies"], *project["optional-dependencies"]["daemon"]]))


main()
