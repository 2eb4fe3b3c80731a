"""Peers of which one is native and the other pure Python."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support import watchdog
from tests.support.admin_command import COMMAND
from tests.support.daemon_process import Daemon, environment
from tests.support.native import NATIVE

#: A client process: requests of changing sizes and structures, some of which make the channel grow; it prints the count.
CLIENT = """
import sys
import numpy as np
from shmserve.client import ShmClient
from shmserve.backend import BACKEND

runtime_dir, native, requests = sys.argv[1], sys.argv[2] == "0", int(sys.argv[3])
assert BACKEND == ("native" if native else "pure")
generator = np.random.default_rng(1)
sizes = [0, 1, 7, 100, 4095, 30_000, 40_000, 70_000]
with ShmClient("t", runtime_dir=runtime_dir, timeout=60.0) as client:
    assert repr(client).endswith(f"backend={BACKEND}>"), repr(client)
    for number in range(requests):
        size = sizes[number % len(sizes)] + (number * 300 if number % 97 == 0 else 0)
        array = generator.integers(0, 255, size, np.uint8)
        tree = {"array": array, "turned": array[: size // 2 * 2].reshape(2, -1).T, "number": number, "half": number / 2,
                "even": number % 2 == 0, "text": "x" * (number % 400), "list": [number] * (8 + number % 3)}
        if number % 3 == 0:
            tree["nested"] = {"deep": [(np.float32(number), None)]}
        if number % 50 == 0:
            found = [pending.result() for pending in [client.submit(tree), client.submit(tree)]][1]
        else:
            found = client.infer(tree)
        assert list(found) == list(tree)
        assert found["array"].dtype == array.dtype and (found["array"] == array).all()
        assert found["turned"].shape == tree["turned"].shape and (found["turned"] == tree["turned"]).all()
        for key in ("number", "half", "even", "text", "list"):
            assert type(found[key]) is type(tree[key]) and found[key] == tree[key], key
        if "nested" in tree:
            assert found["nested"] == tree["nested"]
    print(requests)
"""
_REQUESTS = 1000

pytestmark = [pytest.mark.skipif(not NATIVE, reason="installed without a compiler"), pytest.mark.sealed_too]


@pytest.fixture(scope="module", params=["named", pytest.param("sealed", marks=pytest.mark.long)])
def transport(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module", params=[True, False], ids=["native daemon", "pure daemon"])
def daemon(request: pytest.FixtureRequest, transport: str) -> Iterator[tuple[Daemon, bool]]:
    daemon = Daemon("echo", arguments=("--transport", transport))
    daemon.environment["SHMSERVE_PURE"] = "0" if request.param else "1"
    with daemon:
        yield daemon, request.param


@pytest.mark.parametrize("native", [True, False], ids=["native client", "pure client"])
def test_a_thousand_requests_of_changing_sizes_come_back_exactly(daemon: tuple[Daemon, bool], native: bool) -> None:
    served, _ = daemon
    variable = "0" if native else "1"

    with subprocess.Popen(
        watchdog.ending_with_us([sys.executable, "-c", CLIENT, str(served.runtime_dir), variable, str(_REQUESTS)]),
        env={**environment(), "SHMSERVE_PURE": variable},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as client:
        watchdog.watch(client)
        said, wrote = client.communicate()

    assert (client.returncode, said, wrote) == (0, f"{_REQUESTS}\n", "")


def test_the_status_and_the_log_report_the_engine_s_backend(daemon: tuple[Daemon, bool]) -> None:
    served, engine_native = daemon
    admin = [str(COMMAND), "--name", "t", "--runtime-dir", str(served.runtime_dir)]

    shown = subprocess.run([*admin, "status"], capture_output=True, text=True, timeout=60, check=True).stdout

    backend = "native" if engine_native else "pure"
    (line,) = (line for line in shown.splitlines() if "backend" in line)
    assert backend in line.split()
    assert f", {backend} backend" in served.log
    assert served.status()["engine"]["backend"] == backend
    assert "backend" not in served.status()["model"]
