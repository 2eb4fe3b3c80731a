"""Attaches to a service as another user and asks it COUNT times; says how it went, and goes when told to."""

import sys

from shmserve.client import ShmClient, ShmServeError
from tests.stranger_process import become


def main() -> None:
    name, runtime_dir, uid, clients, count = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    become(uid)
    attached = []
    try:
        for _ in range(clients):
            client = ShmClient(name, runtime_dir=runtime_dir, timeout=30, max_retries=0)
            client.connect()
            attached.append(client)
        for number in range(count):
            assert attached[0].infer({"do": "echo", "value": number}) == number
        print("served", flush=True)
    except ShmServeError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        for client in attached:
            client.close()


if __name__ == "__main__":
    main()
