"""Compiles networks with AOTInductor, in a process of its own: `python -m tests.support.packages.compiling DIRECTORY`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from . import networks
from .networks import IMAGE_SHAPE, seeded


def main(directory: Path) -> None:
    """Write DIRECTORY/NAME.pt2 for each network that the tests of compiled code load."""
    one_row = (torch.zeros(1, *IMAGE_SHAPE, dtype=torch.uint8), torch.zeros(1, 2))
    named = networks.ReachNamed(seeded(networks.Reach)).eval()
    programs = {
        "reach": torch.export.export(seeded(networks.Reach), one_row),
        "reach_named": torch.export.export(named, (dict(zip(("image", "state"), one_row, strict=True)),)),
        "remembering": torch.export.export(seeded(networks.Remembering), (torch.ones(2),)),
    }
    for name, program in programs.items():
        torch._inductor.aoti_compile_and_package(program, package_path=str(directory / f"{name}.pt2"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
