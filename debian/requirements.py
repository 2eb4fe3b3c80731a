"""Requirements of the daemon and the client from pyproject.toml, printed for pip."""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def main() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
    print(
        "# Packages that the daemon needs beside this one: pip install -r, in the environment of /etc/default/shmserve."
    )
    print("\n".join([*project["dependencies"], *project["optional-dependencies"]["daemon"]]))


main()
