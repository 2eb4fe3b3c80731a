"""Asks for service `t` as the user UID whose temporary directory is TMP: as a robot, and as an operator. Says how it went."""

import sys
import tempfile

from shmserve.client import ShmClient, ShmServeError
from shmserve.client.cli.connection import AdminConnection
from tests.support.stranger_process import become


def main() -> None:
    become(int(sys.argv[1]))
    tempfile.tempdir = sys.argv[2]
    try:
        with ShmClient("t", timeout=30, max_retries=0):
            print("attached", flush=True)
    except ShmServeError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    try:
        with AdminConnection("t", None) as connection:
            print(connection.status(), flush=True)
    except ShmServeError as error:
        print(f"{type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()
