"""Builds the compiled steps of a request (compiled/). Without a compiler or the headers they are left out, and all works."""

from __future__ import annotations

from pathlib import Path

from setuptools import Extension, setup

try:
    import numpy
except ImportError:  # no isolated build, and nothing that pyproject.toml asks for
    extensions = []
else:
    extensions = [
        Extension(
            "shmserve._compiled",
            sources=sorted(str(source) for source in Path("compiled").glob("*.c")),
            depends=sorted(str(header) for header in Path("compiled").glob("*.h")),
            include_dirs=[numpy.get_include()],
            extra_compile_args=["-O3", "-std=gnu11", "-Wall", "-Wextra"],
            optional=True,
        )
    ]

setup(ext_modules=extensions)
