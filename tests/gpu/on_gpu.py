"""The GPU's tests and its benchmark with whatever Python here has torch: `make test-gpu bench-gpu`.

Installs nothing and needs no network. `.venv` is used if its torch finds a GPU, else the Python that runs this. Every part
runs, whatever became of the one before; the exit status is the worst. With `--rehearse` the late GPU of late_cuda.py takes
the place of a real one, and the benchmark is short and its models are small.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

Ran = Iterator[dict[str, object]]
ROOT = Path(__file__).resolve().parents[2]
#: Where parts leave their logs, what they measured, and a summary; nowhere if it is not set.
RESULTS = "RESULTS"
_PROBE = """
import importlib.util, json, sys
names = ["torch", "numpy", "posix_ipc", "click", "pytest", "xdist"]
names += [] if sys.version_info >= (3, 11) else ["tomli"]
missing = [name for name in names if importlib.util.find_spec(name) is None]
gpu = None
if "torch" not in missing:
    import torch
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
print(json.dumps([missing, gpu]))
"""
#: What has a stand-in of its own (tests/support/without_packages).
_REPLACED = {"posix_ipc", "click"}
#: What only makes the tests faster.
_FASTER = {"xdist"}
#: Workers, where pytest-xdist is there: each has an engine on the GPU.
_WORKERS = 4

#: Parts of the tests: files, and pytest's arguments.
PARTS: dict[str, list[str]] = {
    "device": ["tests/unit/engine/device", "tests/gpu", "-m", ""],
    "serving": ["tests/integration/device", "-m", "gpu"],
    # The service's own tests, with the device in the place of the CPU.
    "service": [
        *(f"tests/integration/requests/test_{name}.py" for name in ("staging", "batching", "growing", "pipelining")),
        "-m",
        "",
    ],
}
#: As PARTS, for `make sanitize-gpu`: torch's own checker of streams, and CUDA's of memory.
SANITIZERS: dict[str, list[str]] = {
    "streams": ["tests/gpu/test_gpu.py", "-m", "gpu"],
    "memory": ["tests/gpu/test_gpu.py", "-m", "gpu", "-k", "registered or threshold or recorded"],
}


def probe(python: str) -> tuple[list[str], str | None]:
    """Which packages this Python lacks, and the GPU that its torch finds."""
    found = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        return [f"(it does not start: {found.stderr.strip()[-200:]})"], None
    missing, gpu = json.loads(found.stdout.splitlines()[-1])
    return missing, gpu


def chosen() -> tuple[str, list[str], str | None]:
    """The Python to use, what it lacks, and its GPU."""
    own = ROOT / ".venv" / "bin" / "python"
    candidates = [*([str(own)] if own.exists() else []), sys.executable]
    probed = [(python, *probe(python)) for python in candidates]
    return next((found for found in probed if found[2] is not None), probed[-1] if len(probed) == 1 else probed[0])


def build_core(python: str) -> str:
    """Build the native core for this Python; return what serves requests, as a sentence."""
    suffix = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout.strip()
    if (ROOT / "shmserve" / f"_core{suffix}").exists():
        return "the native core is there"
    if os.environ.get("SHMSERVE_PURE") == "1":
        return "SHMSERVE_PURE=1: pure Python, whose requests take about twice as long"
    built = subprocess.run(
        [python, "setup.py", "-q", "build_ext", "--inplace"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if built.returncode == 0:
        for folder in ROOT.glob("build/temp*"):
            shutil.rmtree(folder, ignore_errors=True)
        return "the native core is built"
    os.environ["SHMSERVE_PURE"] = "1"
    why = (built.stderr.strip().splitlines() or ["no reason given"])[-1][-200:]
    return (
        f"SHMSERVE_PURE=1: pure Python, whose requests take about twice as long, because the core is not built: {why}"
    )


def run(name: str, command: list[str], environment: dict[str, str]) -> dict[str, object]:
    """Run one part, show its output, keep it where results go, and return its entry of the summary."""
    print(f"\n=== {name}: {' '.join(command[1:])}", flush=True)
    began = time.monotonic()
    folder = os.environ.get(RESULTS)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    last = ""
    with open(Path(folder) / f"gpu-{name}.log", "w") if folder else open(os.devnull, "w") as log:
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            log.write(line)
            log.flush()
            last = line.strip() or last
    return {"part": name, "status": process.wait(), "seconds": round(time.monotonic() - began), "last": last}


def tested(python: str, missing: list[str], gpu: str | None, arguments: list[str], environment: dict[str, str]) -> Ran:
    """Run the parts of the tests that the arguments name, or all."""
    pytest = [python, "-m", "pytest", "-rs", "-p", "no:cacheprovider"]
    if "xdist" not in missing:
        pytest += ["-n", str(_WORKERS), "--dist", "loadfile"]
    names = [argument for argument in arguments if argument in PARTS] or [*PARTS]
    others = [argument for argument in arguments if argument not in PARTS]
    for name in names:
        if gpu is None and name == "service":
            yield left_out(name, "there is no GPU")
        else:
            own = {"SHMSERVE_TEST_DEVICE": "cuda:0"} if name == "service" else {}
            yield run(name, [*pytest, *PARTS[name], *others], {**environment, **own})


def sanitized(python: str, environment: dict[str, str]) -> Ran:
    """Run tests under torch's checker and under CUDA's."""
    pytest = [python, "-m", "pytest", "-rs", "-p", "no:cacheprovider"]
    yield run("streams", [*pytest, *SANITIZERS["streams"]], {**environment, "TORCH_CUDA_SANITIZER": "1"})
    checker = shutil.which("compute-sanitizer")
    if checker is None:
        yield left_out("memory", "compute-sanitizer is not on PATH")
    else:
        command = [checker, "--tool", "memcheck", "--error-exitcode", "3", *pytest, *SANITIZERS["memory"]]
        yield run("memory", command, environment)


def left_out(name: str, why: str) -> dict[str, object]:
    """Return the summary's entry of a part that does not run, which is a failure."""
    return {"part": name, "status": 1, "seconds": 0, "last": f"not run: {why}"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("goals", nargs="+", choices=["test", "bench", "sanitize"])
    parser.add_argument("--test", default="", help="parts, and arguments of pytest")
    parser.add_argument("--bench", default="", help="arguments of bench.gpu")
    parser.add_argument("--rehearse", action="store_true", help="on the late GPU")
    given = parser.parse_args()
    path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    if given.rehearse:
        path.insert(0, str(ROOT / "tests" / "support" / "late_gpu"))
        os.environ |= {"LATE_CUDA": os.environ.get("LATE_CUDA", "{}"), "LATE_CUDA_IN": "-c pytest bench.gpu"}
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        os.environ["BENCH_GPU_SMALL"] = "1"
    python, missing, gpu = chosen()
    optional = _REPLACED | _FASTER | (set() if given.goals != ["bench"] else {"pytest"})
    if needed := [name for name in missing if name not in optional]:
        print(f"{python} lacks {', '.join(needed)}: install them, or name another Python (make PYTHON=...)")
        return 2
    folder = os.environ.get(RESULTS)
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
    print(f"{python}: {gpu or 'no GPU'}\n{build_core(python)}", flush=True)
    for name in sorted(set(missing) & _REPLACED):
        print(f"{name} is missing: tests/support/without_packages stands in for it")
        path.append(str(ROOT / "tests" / "support" / "without_packages" / f"for_{name}"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONUNBUFFERED": "1"}

    ran: list[dict[str, object]] = []
    for goal in given.goals:
        if goal == "test":
            ran += tested(python, missing, gpu, shlex.split(given.test), environment)
        elif goal == "sanitize":
            ran += sanitized(python, environment)
        else:
            options = ["--results", folder] if folder else []
            options += ["--seconds", "0.2", "--copies", "1"] if given.rehearse else []
            ran.append(run("bench", [python, "-m", "bench.gpu", *options, *shlex.split(given.bench)], environment))

    print(f"\n{gpu or 'no GPU'}{' (a rehearsal)' if given.rehearse else ''}")
    for each in ran:
        print(f"{each['part']}: status {each['status']}, {each['seconds']} s, {each['last']}")
    if folder:
        summary = {"gpu": gpu, "python": sysconfig.get_python_version(), "lacks": missing, "parts": ran}
        (Path(folder) / "gpu-summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return max(abs(int(str(each["status"]))) for each in ran)


if __name__ == "__main__":
    sys.exit(main())
