"""The processors that wheels are built for: by this machine's own compiler, or across.

A build across takes the headers of this machine's Python, which are the same for every processor but for pyconfig.h. What
pyconfig.h says of sizes is compared with the other compiler before anything is built.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

#: The machine's number in an ELF header.
ELF_MACHINE = {"x86_64": 62, "aarch64": 183}


@dataclass(frozen=True)
class Target:
    """One processor, as `platform.machine` names it."""

    machine: str

    @property
    def is_native(self) -> bool:
        return self.machine == platform.machine()

    @property
    def compiler(self) -> str:
        return "gcc" if self.is_native else f"{self.machine}-linux-gnu-gcc"

    def missing(self) -> str:
        """Return the reason why this machine cannot build for it; empty if it can."""
        if shutil.which(self.compiler):
            return ""
        package = "gcc" if self.is_native else f"gcc-{self.machine}-linux-gnu"
        return f"no {self.compiler} here (apt-get install {package})"

    def suffix(self, version: str) -> str:
        """Return how the file name of an extension ends for CPython `version`."""
        return f".cpython-{version.replace('.', '')}-{self.machine}-linux-gnu.so"

    def variables(self, version: str) -> dict[str, str]:
        """Return the environment with which setuptools builds for it."""
        if self.is_native:
            return {"CC": self.compiler}
        return {
            "CC": self.compiler,
            "LDSHARED": f"{self.compiler} -shared",
            "SETUPTOOLS_EXT_SUFFIX": self.suffix(version),
            "_PYTHON_HOST_PLATFORM": f"linux-{self.machine}",
        }


def assertions(pyconfig: str) -> str:
    """Return a C program that compiles where every size and alignment that `pyconfig` states is true.

    >>> print(assertions("#define SIZEOF_VOID_P 8\\n#define ALIGNOF_LONG 8\\n#define HAVE_X 1\\n"), end="")
    #include <stddef.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <pthread.h>
    #include <sys/types.h>
    #include <time.h>
    #include <wchar.h>
    _Static_assert(sizeof(void *) == 8, "SIZEOF_VOID_P");
    _Static_assert(_Alignof(long) == 8, "ALIGNOF_LONG");
    """
    headers = ("stddef.h", "stdint.h", "stdio.h", "pthread.h", "sys/types.h", "time.h", "wchar.h")
    lines = [f"#include <{header}>" for header in headers]
    for kind, name, value in re.findall(r"^#define (SIZEOF|ALIGNOF)_(\w+) (\d+)$", pyconfig, re.MULTILINE):
        special = {"VOID_P": "void *", "_BOOL": "_Bool", "MAX_ALIGN_T": "max_align_t"}
        c_type = special.get(name) or (name.lower() if name.endswith("_T") else name.lower().replace("_", " "))
        operator = "sizeof" if kind == "SIZEOF" else "_Alignof"
        lines.append(f'_Static_assert({operator}({c_type}) == {value}, "{kind}_{name}");')
    return "\n".join(lines) + "\n"


def check_headers(target: Target, include: Path) -> None:
    """Raise SystemExit unless the sizes in the pyconfig.h in `include` are those of the target."""
    program = assertions((include / "pyconfig.h").read_text("utf-8"))
    if program.count("_Static_assert") < 10:
        raise SystemExit(
            f"wheels: {include}/pyconfig.h states no sizes; build with a Python whose pyconfig.h is complete"
        )
    command = [target.compiler, "-std=c11", "-D_GNU_SOURCE", "-fsyntax-only", "-x", "c", "-"]
    checked = subprocess.run(command, input=program, capture_output=True, text=True, check=False)
    if checked.returncode != 0:
        raise SystemExit(f"wheels: {include}/pyconfig.h does not hold for {target.machine}:\n{checked.stderr}")
