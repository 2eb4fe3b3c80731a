"""Build of the extension `shmserve._core` (native/python/).

Without a compiler or the headers the extension is left out, and pure Python serves requests.
"""

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
            "shmserve._core",
            sources=sorted(str(source) for source in Path("native/python").glob("*.c")),
            depends=sorted(str(header) for header in Path("native/python").glob("*.h")),
            include_dirs=[numpy.get_include()],
            extra_compile_args=["-O3", "-std=gnu11", "-Wall", "-Wextra"],
            optional=True,
        )
    ]

setup(ext_modules=extensions)
