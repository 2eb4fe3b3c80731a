"""Build of the extension `shmserve._core` (native/python/, thin over native/core/).

The extension is part of an installation, and a failing compilation fails the installation. SHMSERVE_PURE=1 leaves the extension
out: pure Python serves requests.
"""

from __future__ import annotations

import os
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError, CompileError

#: native/lib/ is libshmserve, which `make libshmserve` builds.
_FOLDERS = (Path("native/core"), Path("native/python"))


class BuildNativeCore(build_ext):
    """Compilation of the native core that ends with the remedy where it fails."""

    def run(self) -> None:
        try:
            super().run()
        except (BaseError, CCompilerError) as error:
            raise CompileError(
                f"the native core of shmserve cannot be compiled: {error}\n"
                "Install gcc and the Python headers (apt-get install gcc python3-dev), or set SHMSERVE_PURE=1 to install "
                "shmserve in pure Python, with which a request takes about twice as long."
            ) from error


if os.environ.get("SHMSERVE_PURE") == "1":
    extensions = []
else:
    import numpy

    extensions = [
        Extension(
            "shmserve._core",
            sources=[str(source) for folder in _FOLDERS for source in sorted(folder.glob("*.c"))],
            depends=[str(header) for folder in _FOLDERS for header in sorted(folder.glob("*.h"))],
            include_dirs=["native", numpy.get_include()],
            extra_compile_args=[
                *("-std=c11", "-D_GNU_SOURCE", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden"),
                # A distribution's Python may define it, too.
                *("-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"),
            ],
            extra_link_args=["-Wl,-z,relro,-z,now"],
        )
    ]

setup(ext_modules=extensions, cmdclass={"build_ext": BuildNativeCore})
