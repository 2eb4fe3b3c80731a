"""A process with a store that does what it is told and ends, or is made to end: python -m tests.support.archives.store_process.

    DIRECTORY KEEP_VERSIONS add PACKAGE | current VERSION | record VERSION | prune KEEP | forever PACKAGE...

Several commands may follow one another; "forever" adds the packages and makes each current, round and round. Prints one
line for each thing done. Exit status 3: refused, with the reason on standard output.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from shmserve.daemon.store import ArchiveRefused, Store, StoreUnavailable

REFUSED = 3


async def _add(store: Store, package: str) -> str:
    descriptor = os.open(package, os.O_RDONLY)
    try:
        return (await store.add(descriptor, note="from a process")).version
    finally:
        os.close(descriptor)


async def _run(store: Store, words: list[str]) -> None:
    while words:
        match words.pop(0):
            case "add":
                print("added", await _add(store, words.pop(0)), flush=True)
            case "current":
                store.make_current(words.pop(0), device="cpu")
                print("current", flush=True)
            case "record":
                store.set_metadata(words.pop(0), served=1000)
                print("recorded", flush=True)
            case "prune":
                print("pruned", *(version.version for version in store.prune(int(words.pop(0)))), flush=True)
            case "forever":
                while True:
                    for package in words:
                        version = await _add(store, package)
                        store.make_current(version)
                        print("current", version, flush=True)
            case other:
                raise ValueError(other)


def main() -> int:
    store = Store(Path(sys.argv[1]), keep_versions=int(sys.argv[2]))
    store.open()
    print("open", flush=True)
    try:
        asyncio.run(_run(store, sys.argv[3:]))
    except (ArchiveRefused, StoreUnavailable) as error:
        print("refused", error, flush=True)
        return REFUSED
    finally:
        store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
