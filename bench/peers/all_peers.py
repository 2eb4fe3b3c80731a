"""List of all peers, in the order of the table."""

from __future__ import annotations

from .flask_pickle import FlaskPickle
from .gr00t_zmq import Gr00tZmqIpc, Gr00tZmqTcp
from .iceoryx2 import Iceoryx2Event, Iceoryx2Poll
from .in_process import InProcess
from .lerobot_grpc import LeRobotGrpc
from .openpi import OpenPi
from .peer import Peer
from .shmserve_peer import (
    Shmserve,
    ShmserveBlocking,
    ShmserveInPlace,
    ShmserveMaxAge,
    ShmservePure,
    ShmserveSealed,
)
from .torchrl_slots import TorchRlSlots
from .triton import Triton
from .unix_socket_pickle5 import UnixSocketPickle5


def all_peers() -> list[Peer]:
    """Make new peers, not started; the packages of a peer are imported only when it is used."""
    return [
        FlaskPickle(),
        LeRobotGrpc(),
        Triton(),
        OpenPi(),
        Gr00tZmqTcp(),
        Gr00tZmqIpc(),
        UnixSocketPickle5(),
        TorchRlSlots(),
        Iceoryx2Event(),
        Iceoryx2Poll(),
        ShmservePure(),
        ShmserveBlocking(),
        ShmserveSealed(),
        ShmserveMaxAge(),
        Shmserve(),
        ShmserveInPlace(),
        InProcess(),
    ]
