"""One replica behind a bare gRPC server: what Ray Serve does for links, without Ray.

    python -m tests.support.replica_server PACKAGE TARGET...

TARGET is unix:///path or 127.0.0.1:PORT. It also has the method /shmserve.Model/Echo, which returns the bytes that it gets. Prints a line when
it listens, and ends with its standard input.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from shmserve.message import MAX_MESSAGE_BYTES
from shmserve.scale.replica import Replica

_LIMITS = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.max_send_message_length", MAX_MESSAGE_BYTES)]


def main() -> None:
    """Load the package, listen, and serve."""
    package, *targets = sys.argv[1:]  # the package's own import empties sys.argv
    replica = Replica(Path(package))
    model = ThreadPoolExecutor(1)

    def infer(data: bytes, context: grpc.ServicerContext) -> bytes:
        return model.submit(replica.infer, [(data, time.monotonic_ns())]).result()[0]

    calls = {
        "Infer": infer,
        "Describe": lambda data, context: replica.describe(data),
        "Echo": lambda data, context: data,
    }
    server = grpc.server(ThreadPoolExecutor(16), options=_LIMITS)
    handlers = {name: grpc.unary_unary_rpc_method_handler(call) for name, call in calls.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shmserve.Model", handlers),))
    for target in targets:
        server.add_insecure_port(target)
    server.start()
    print("listens", flush=True)
    sys.stdin.read()
    server.stop(0)


if __name__ == "__main__":
    main()
