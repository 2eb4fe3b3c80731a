"""Attaches to a service as another user and asks it COUNT times, all that TIMES over; says how it went."""

import sys

from shmserve.client import ShmClient, ShmServeError
from tests.support.stranger_process import become


def main() -> None:
    name, runtime_dir, uid, clients, count, times = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:7])
    become(uid)
    try:
        for _ in range(times):
            _ask(name, runtime_dir, clients, count)
        print("served", flush=True)
    except ShmServeError as error:
        print(f"{type(error).__name__}: {error}", flush=True)


def _ask(name: str, runtime_dir: str, clients: int, count: int) -> None:
    attached = []
    try:
        for _ in range(clients):
            client = ShmClient(name, runtime_dir=runtime_dir, timeout=30, max_retries=0)
            client.connect()
            attached.append(client)
        for number in range(count):
            assert attached[0].infer({"do": "echo", "value": number}) == number
    finally:
        for client in attached:
            client.close()


if __name__ == "__main__":
    main()
