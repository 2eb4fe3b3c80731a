"""The descriptors that this process was started with, kept from the processes that it or a model starts."""

from __future__ import annotations

import os

_FIRST = 3  # after standard input, output and error


def keep_from_children() -> None:
    """Make every open descriptor but the standard three close-on-exec; Python does so with what it opens itself."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= _FIRST:
            try:
                os.set_inheritable(int(name), False)
            except OSError:  # that of the listing itself
                continue
