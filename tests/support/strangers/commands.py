"""Runs commands of shmserve-admin as another user with these supplementary groups: `commands UID GIDS COMMANDS`.

GIDS and COMMANDS are JSON. It prints, as JSON, the exit status, the output and the error text of each.
"""

import contextlib
import io
import json
import os
import sys

from shmserve.client import ShmClient  # noqa: F401
from shmserve.client.cli import example, synthetic_observation, update  # noqa: F401  imported before `become`, as the next one
from shmserve.client.cli.main import main as admin_command
from shmserve.client.recordings import recorder  # noqa: F401
from tests.support.stranger_process import become


def main() -> None:
    uid, groups, commands = int(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
    become(uid, groups)
    print(json.dumps([_run(words) for words in commands]), flush=True)


def _run(words: list[str]) -> tuple[int, str, str]:
    output, errors = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            admin_command(words, prog_name="shmserve-admin", standalone_mode=True)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(bool(end.code))
    return status, output.getvalue(), errors.getvalue()


if __name__ == "__main__":
    os.environ["NO_COLOR"] = "1"
    main()
