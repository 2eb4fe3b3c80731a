"""Starts programs and processes, and ends them; says what they find around them."""

import concurrent.futures
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

#: As long as no test lasts: what is not ended keeps its policy waiting.
_LONG_S = 1000


def square(number: int) -> int:
    return number * number


class _Numbers(torch.utils.data.Dataset):  # type: ignore[misc]
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        return index


def _program(**settings: Any) -> "subprocess.Popen[bytes]":
    program = subprocess.Popen(["sleep", str(_LONG_S)], **settings)
    time.sleep(0.1)
    return program


def _terminated(process: Any) -> Any:
    process.start()
    time.sleep(0.1)
    process.terminate()
    process.join()
    return process.exitcode


class Policy:
    def __init__(self, path: Path, device: torch.device) -> None:
        self._path = path

    def infer(self, observation: dict[str, Any]) -> Any:
        return getattr(self, f"_{observation['do']}")()

    def _end(self) -> Any:
        """How each kind of child ends that is told to."""
        found: dict[str, Any] = {}
        program = _program()
        program.terminate()
        found["terminate"] = program.wait()
        program = _program()
        program.send_signal(signal.SIGINT)
        found["interrupt"] = program.wait()
        program = _program(start_new_session=True)
        os.killpg(program.pid, signal.SIGTERM)
        found["group"] = program.wait()
        shell = subprocess.Popen(f"sleep {_LONG_S} & kill $!; wait $!", shell=True)
        found["shell"] = shell.wait()
        spawned = os.posix_spawn("/bin/sleep", ["sleep", str(_LONG_S)], os.environ)
        os.kill(spawned, signal.SIGTERM)
        found["posix_spawn"] = os.waitstatus_to_exitcode(os.waitpid(spawned, 0)[1])
        for method in ("fork", "spawn"):
            context: Any = multiprocessing.get_context(method)
            found[method] = _terminated(context.Process(target=time.sleep, args=(_LONG_S,)))
        with multiprocessing.get_context("fork").Pool(2) as pool:
            found["pool"] = pool.map(square, range(3))
            pool.apply_async(time.sleep, (_LONG_S,))
            time.sleep(0.1)
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as executor:
            found["executor"] = list(executor.map(square, range(3)))
        loader = torch.utils.data.DataLoader(_Numbers(), batch_size=4, num_workers=2)
        found["loader"] = [batch.tolist() for batch in loader]
        return found

    def _script(self) -> Any:
        """What a script of the package says, which imports its neighbour and takes no argument of the daemon's."""
        done = subprocess.run(
            [sys.executable, self._path / "surroundings.py"], capture_output=True, text=True, check=False
        )
        return {"out": done.stdout, "error": done.stderr}

    def _fork(self) -> Any:
        """What a forked child says of itself."""
        sys.path.insert(0, str(self._path))
        from surroundings import surroundings  # type: ignore[import-not-found]

        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as executor:
            return executor.submit(surroundings).result()

    def _itself(self) -> Any:
        return {"arguments": sys.argv, "path": sys.path[0], "umask": _umask(), "directory": os.getcwd()}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
