"""Generator of the man pages from the help of the commands: `make man`; `--check` reports whether they are current."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import click
from click_man.core import write_man_pages
from commands import EXIT_STATUS, PROGRAMS

from shmserve import __version__

FOLDER = Path(__file__).resolve().parent
#: The day of the version, not of the run: the pages change when the help does.
_DATE = "2026-11-22"


def write(folder: Path) -> None:
    """Write every page, one file each."""
    for name, command in PROGRAMS.items():
        write_man_pages(name, command, version=__version__, target_dir=str(folder), date=_DATE)
    for page in folder.glob("*.1"):
        page.write_text(_finished(page.stem, page.read_text()))


def _finished(name: str, text: str) -> str:
    """Return the page as man(1) should show it: examples line by line, dashes that can be copied, the exit status."""
    lines: list[str] = []
    example = False
    for line in text.splitlines():
        if line.strip() == "\b":
            example = True
            lines += [".PP", "Examples:", ".PP", ".nf"]
            continue
        if example and not line.startswith("shmserve"):
            lines.append(".fi")
            example = False
        lines.append(line.replace("--", r"\-\-") if not line.startswith(".TH") else line)
    if example:
        lines.append(".fi")
    program = "shmserved" if name == "shmserved" else "shmserve-admin"
    lines += [".SH EXIT STATUS", EXIT_STATUS[program]]
    return "\n".join(lines) + "\n"


def stale() -> list[str]:
    """Return the names of the pages that differ from the current help."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        now = {path.name: path.read_text() for path in Path(folder).iterdir()}
    kept = {path.name: path.read_text() for path in FOLDER.glob("*.1")}
    return sorted(name for name in now.keys() | kept.keys() if now.get(name) != kept.get(name))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page is not current")
    if parser.parse_args().check:
        old = stale()
        sys.exit(f"not current, run make man: {', '.join(old)}" if old else 0)
    for page in FOLDER.glob("*.1"):
        page.unlink()
    write(FOLDER)
    click.echo(f"{len(list(FOLDER.glob('*.1')))} pages in {FOLDER}")
