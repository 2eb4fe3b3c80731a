"""A Ray cluster of one machine as a process: prints its address, and ends with its standard input.

python -m tests.support.ray_cluster TEMPORARY_DIRECTORY
"""

from __future__ import annotations

import sys

import ray

_STORE_BYTES = 200 << 20


def main() -> None:
    """Start it on the loopback address alone, as far as Ray obeys: run it where there is no other."""
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=_STORE_BYTES,
        log_to_driver=False,
        _temp_dir=sys.argv[1],
    )
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    main()
