"""The spin budget in C, which libshmserve uses, beside the one in Python."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from shmserve.spin import SpinBudget
from tests.support.c_library import require_compiler
from tests.support.folders import REPOSITORY

_PROGRAM = """
#include "core/spin_budget.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
int main(int count, char **arguments)
{
    SpinBudget budget;
    uint64_t wait_ns;
    (void)count;
    spin_budget_begin(&budget, atoll(arguments[1]));
    for (printf("%" PRIu64 "\\n", budget.ns); scanf("%" SCNu64, &wait_ns) == 1; printf("%" PRIu64 "\\n", budget.ns))
        spin_budget_waited(&budget, wait_ns);
    return 0;
}
"""


@pytest.mark.parametrize("setting_us", [None, 0, 40])
def test_the_budget_in_c_follows_the_same_waits(tmp_path: Path, setting_us: int | None) -> None:
    require_compiler()
    (tmp_path / "budget.c").write_text(_PROGRAM)
    subprocess.run(["gcc", f"-I{REPOSITORY}/native", "budget.c", "-o", "budget"], cwd=tmp_path, check=True)
    rng = random.Random(3)
    waits = [int(10 ** rng.uniform(2, 11)) if rng.random() < 0.3 else rng.randrange(1, 900_000) for _ in range(3000)]
    budget = SpinBudget("adaptive" if setting_us is None else setting_us)
    expected = [budget.ns]
    for wait_ns in waits:
        budget.waited(wait_ns)
        expected.append(budget.ns)

    setting_ns = -1 if setting_us is None else setting_us * 1000
    said = subprocess.run(
        [tmp_path / "budget", str(setting_ns)],
        input="\n".join(map(str, waits)),
        capture_output=True,
        text=True,
        check=True,
    )

    assert [int(line) for line in said.stdout.split()] == expected
