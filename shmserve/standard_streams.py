"""Standard input, output and error of a program that was started with some of them closed."""

from __future__ import annotations

import os
import sys


def open_standard_streams() -> None:
    """Open /dev/null on those of descriptors 0 to 2 that are closed, before a socket or a file gets that number.

    Otherwise a line of the log, or of a child, would go into whatever was opened next.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:  # as Python leaves it
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
