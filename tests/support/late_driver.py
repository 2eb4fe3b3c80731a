"""A libcuda.so.1 for tests (c_programs/late_driver.c), and arrays in its memory as a client has them."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shmserve.cuda_driver import driver
from tests.support.built_programs import built
from tests.support.c_library import STRICT, require_compiler
from tests.support.folders import SUPPORT


@functools.cache
def library() -> Path:
    """Return the library, whose folder has nothing else that a loader would take."""
    require_compiler()
    source = SUPPORT / "c_programs/late_driver.c"
    flags = ("-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-pthread")
    made = built(source, ["gcc", *STRICT, *flags, str(source)], ".so")
    link = made.with_name("libcuda.so.1")
    if not link.exists():
        fresh = link.with_name(f"new-{os.getpid()}")
        fresh.symlink_to(made.name)
        fresh.rename(link)
    return link


def environment(**settings: object) -> dict[str, str]:
    """Variables for a process that is to have this driver, with settings such as DEVICES=2."""
    path = [str(library().parent), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {"LD_LIBRARY_PATH": os.pathsep.join(path), **{f"LATE_DRIVER_{key}": str(of) for key, of in settings.items()}}


@functools.cache
def loaded() -> ctypes.CDLL:
    """Load the library into this process, for which it is the driver from now on; return its functions for tests."""
    found = ctypes.CDLL(str(library()))
    found.late_allocate.restype = ctypes.c_void_p
    found.late_allocate.argtypes = (ctypes.c_size_t, ctypes.c_int)
    found.late_fill.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t)
    found.late_mapped_bytes.restype = ctypes.c_size_t
    driver()
    return found


class GpuArray:
    """An array in the driver's memory that shows itself as cupy and numba do."""

    def __init__(
        self, values: npt.NDArray[Any], *, device: int = 0, version: int = 3, typestr: str | None = None, **entries: Any
    ) -> None:
        """`entries` go into the interface: `stream`, or `strides`."""
        values = np.asarray(values, order="C")
        self._address = loaded().late_allocate(max(values.nbytes, 1), device)
        self.nbytes = values.nbytes
        self.host[:] = values.reshape(-1).view(np.uint8)
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": values.shape,
            "typestr": typestr or values.dtype.str,
            "data": (self._address if values.size else 0, False),
            "version": version,
            **entries,
        }

    @property
    def host(self) -> npt.NDArray[np.uint8]:
        """The bytes, as they are now."""
        memory = (ctypes.c_uint8 * self.nbytes).from_address(self._address)
        return np.ctypeslib.as_array(memory)

    def fill_late(self, value: int, stream: int) -> None:
        """Set every byte by a kernel in this stream, which has not run yet."""
        with driver().current(0):
            assert loaded().late_fill(self._address, value, self.nbytes, stream) == 0
