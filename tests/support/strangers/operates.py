"""Asks for the status of a service as another user, and says what it was told."""

import sys
from pathlib import Path

from shmserve.varlink import VarlinkError
from shmserve.varlink_connection import VarlinkConnection
from tests.support.stranger_process import become


def main() -> None:
    become(int(sys.argv[2]))
    try:
        with VarlinkConnection.connect(Path(sys.argv[1]), 30.0) as connection:
            state = connection.call("io.shmserve.Admin.Status", timeout_s=30.0).parameters["status"]["state"]
        print(state)
    except (VarlinkError, OSError) as error:
        print(error)


if __name__ == "__main__":
    main()
