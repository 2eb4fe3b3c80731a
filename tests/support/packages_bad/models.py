"""Packages that look right and whose model is not, each with the words that name the fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_POLICY = """\
import ctypes, os, signal, subprocess, sys, threading, time
import numpy as np
import torch

class Policy:
    def __init__(self, path, device):
        {init}
        self.k = 2

    def example_observation(self):
        return {{"x": np.arange(3), "robot": "nobody"}}

    def metadata(self):
        return {metadata}

    def infer(self, observation):
        {infer}
        return {{"y": observation["x"] * self.k, "k": self.k}}
"""


@dataclass(frozen=True)
class BadModel:
    """A policy of which one part was replaced by statements that do harm."""

    name: str
    said: Sequence[str]
    init: str = "pass"
    infer: str = "pass"
    metadata: str = "{}"
    manifest: str = ""
    #: What the package says its example must give.
    expected_k: int | None = None

    def __str__(self) -> str:
        return self.name

    def write(self, folder: Path) -> Path:
        path = folder / self.name.replace(" ", "-")
        path.mkdir()
        policy = _POLICY.format(init=self.init, infer=self.infer, metadata=self.metadata)
        (path / "policy.py").write_text(policy)
        (path / "model.toml").write_text(self.manifest)
        if self.expected_k is not None:
            np.savez(path / "expected.npz", y=np.arange(3) * self.expected_k)
        return path


def children(folder: Path) -> BadModel:
    """Starts a program that outlives the constructor; its pid is in `folder`/child."""
    file = str(folder / "child")
    return BadModel(
        "starts a program",
        ("load failed: OSError: no camera",),
        init=f"open({file!r}, 'w').write(str(subprocess.Popen(['sleep', '1000']).pid)); raise OSError('no camera')",
    )


#: What the daemon that is asked to serve them lets an engine have.
MEMORY_BYTES = 1 << 30
_LIMIT = f"(engine_memory_bytes is {MEMORY_BYTES})"

MODELS = [
    BadModel(
        "raises", ("load failed: OSError: weights.bin is missing",), init="raise OSError('weights.bin is missing')"
    ),
    BadModel("calls exit", ("load failed: SystemExit: wrong GPU",), init="sys.exit('wrong GPU')"),
    BadModel("ends at once", ("load failed: the engine died: exit status 7; ", "log"), init="os._exit(7)"),
    BadModel("takes all memory", ("load failed: ", "allocate", _LIMIT), init="self.x = torch.ones(1 << 32)"),
    BadModel(
        "says what no engine says",
        ("killed by SIGKILL",),
        init=r"os.write(int(sys.orig_argv[-5]), b'{]\0'); time.sleep(60)",
    ),
    BadModel("gives NaN", ("warm up failed: ", "y: 3 of 3 values are NaN", "allow_nonfinite"), infer="self.k = np.nan"),
]

#: More of the same kinds, for when there is time.
MORE_MODELS = [
    BadModel(
        "gives something else",
        ("warm up failed: ", "not the one recorded in expected.npz: y: 2 of 3 values differ"),
        manifest='[warmup]\nexpected = "expected.npz"\n',
        expected_k=3,
    ),
    BadModel("has much to say", ("metadata()", "more than 32768"), metadata="{'notes': 'x' * 40_000}"),
    BadModel(
        "prints megabytes",
        ("load failed: ValueError: long",),
        init="print('x' * (4 << 20)); print('y' * (4 << 20), file=sys.stderr); raise ValueError('long ' * (1 << 18))",
    ),
    BadModel("raises when warmed up", ("warm up failed: KeyError: 'state'",), infer="raise KeyError('state')"),
    BadModel("ends when warmed up", ("warm up failed: the engine died: exit status 7",), infer="os._exit(7)"),
    BadModel("crashes", ("load failed: the engine died: killed by SIGSEGV",), init="ctypes.string_at(0)"),
    BadModel("aborts", ("load failed: the engine died: killed by SIGABRT",), init="os.abort()"),
    BadModel("interrupts itself", ("load failed: the engine died",), init="raise KeyboardInterrupt"),
    BadModel(
        "takes memory bit by bit",
        ("load failed: MemoryError", _LIMIT),
        init="self.x = [bytes(1 << 20) for _ in range(1 << 13)]",
    ),
    BadModel("takes memory when warmed up", ("warm up failed: ", "allocate", _LIMIT), infer="torch.ones(1 << 32)"),
    BadModel("closes what is not its own", ("the engine died",), init="os.closerange(3, 1000)"),
    BadModel("has no metadata", ("warm up failed: ZeroDivisionError",), metadata="1 / 0"),
    BadModel(
        "fails in a thread",
        ("load failed: the engine died",),
        init="threading.Thread(target=os._exit, args=(7,)).start(); time.sleep(60)",
    ),
]

#: These never come to an end.
HANGING = [
    BadModel("loads for ever", ("load failed: TimeoutError: not ready after load_s = ",), init="time.sleep(1000)"),
    BadModel(
        "warms up for ever", ("warm up failed: TimeoutError: not ready after load_s = ",), infer="while True: pass"
    ),
]
