"""Opens connections as another user with these groups, and holds them: `crowds SOCKET UID GIDS COUNT`.

It prints how many were answered, and holds them until it is killed.
"""

import json
import signal
import sys
from contextlib import suppress
from pathlib import Path

from shmserve.varlink import VarlinkError
from shmserve.varlink_connection import VarlinkConnection
from tests.support.stranger_process import become


def main() -> None:
    become(int(sys.argv[2]), json.loads(sys.argv[3]))
    held = []
    for _ in range(int(sys.argv[4])):
        connection = VarlinkConnection.connect(Path(sys.argv[1]), 30.0)
        with suppress(VarlinkError, ConnectionError):
            connection.call("io.shmserve.Admin.Status", timeout_s=30.0)
            held.append(connection)
    print(len(held), flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
