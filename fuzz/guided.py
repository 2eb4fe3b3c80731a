"""Command for coverage-guided runs with atheris, which keeps inputs that reach new code. Needs the extra `fuzz`.

    python -m fuzz.guided [TARGET ...] [--inputs 2000000] [--keep]

The targets run one after the other, each with its share of the inputs. The last line is the exact number of inputs. With
--keep, new inputs are added to the committed corpus (fuzz/corpus/TARGET.txt).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from fuzz import corpus
from fuzz.target import INPUT_LIMIT_BYTES, TIME_LIMIT_S, Target

#: Instrumented packages: the parsers. Torch and numpy are excluded: they are large, and not part of this project.
_INSTRUMENTED = ["shmserve"]
#: libFuzzer's limits; exceeding them is a finding, so they are wide.
_MEMORY_MIB = 2048


def fuzz_in_this_process(name: str, arguments: list[str]) -> None:
    """Run libFuzzer, which ends the process: never returns."""
    import atheris

    with atheris.instrument_imports(include=_INSTRUMENTED):
        from fuzz.all_targets import load

        target = load(name)
    atheris.Setup([sys.argv[0], *arguments], target.run)
    atheris.Fuzz()


def run(name: str, target: Target, inputs: int, *, keep: bool) -> tuple[int, int]:
    """Fuzz one target; return the number of inputs, and the exit status of the run (0: no finding)."""
    known = {*target.seeds(), *corpus.read(name)}
    with tempfile.TemporaryDirectory(prefix="shmserve-fuzz-", dir="/dev/shm") as scratch:
        folder = Path(scratch, "corpus")
        folder.mkdir()
        written = Path(scratch, "written")
        written.mkdir()
        for number, data in enumerate(sorted(known)):
            (folder / f"known-{number}").write_bytes(data)
        words = Path(scratch, "words")
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words if len(word) < 60))
        command = [sys.executable, "-m", "fuzz.guided", "--in-this-process", name, "--", f"-runs={inputs}"]
        command += [f"-dict={words}", f"-max_len={INPUT_LIMIT_BYTES}", f"-timeout={round(10 * TIME_LIMIT_S)}"]
        command += [f"-rss_limit_mb={_MEMORY_MIB}", "-print_final_stats=1", f"-artifact_prefix=finding-{name}-"]
        environment = {**os.environ, "FUZZ_FOLDER": str(written)}
        ended = subprocess.run(
            [*command, str(folder)], stderr=subprocess.PIPE, text=True, errors="replace", check=False, env=environment
        )
        counted = re.search(r"number_of_executed_units: (\d+)", ended.stderr)
        if ended.returncode or not counted:
            print(ended.stderr[-6000:], file=sys.stderr)
        if keep:
            found = [(folder / name).read_bytes() for name in os.listdir(folder)]
            corpus.add(name, [data for data in found if data not in known])
    return int(counted[1]) if counted else 0, ended.returncode


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def main() -> int:
    if sys.argv[1:2] == ["--in-this-process"]:
        fuzz_in_this_process(sys.argv[2], sys.argv[4:])
    from fuzz.all_targets import SHARES, load, split

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", default=list(SHARES), metavar="TARGET", help=", ".join(SHARES))
    parser.add_argument("--inputs", type=int, default=2_000_000)
    parser.add_argument("--keep", action="store_true", help="add what it found to the committed corpus")
    arguments = parser.parse_args()
    total = status = 0
    for name, inputs in split(arguments.inputs, arguments.targets).items():
        ran, ended = run(name, load(name), inputs, keep=arguments.keep)
        total += ran
        status = status or ended
        print(
            f"{name:14} {ran:>12,} inputs  {'no finding' if not ended else 'FINDING, see finding-' + name + '-*'}",
            flush=True,
        )
    print(f"{total:,} inputs, coverage-guided")
    return status


if __name__ == "__main__":
    sys.exit(main())
