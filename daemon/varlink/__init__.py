"""Varlink server: sockets, connections, calls, and the identity of peers.

It is our own because the daemon must withstand its peers: limits for all connections and for each user, deadlines for a
message and for a reader, the peer's identity from the kernel (SO_PEERCRED, SO_PEERPIDFD), and descriptors that cannot
leak. asyncvarlink has none of these, and needs Python 3.11. Methods see a `Connection` and return dicts or replies.
"""

from .connection import ConnectionLimits
from .interface import Answer, Connection, Interface, InterfaceTable, Method, ServiceInfo
from .peer import Peer
from .server import VarlinkServer, listen_unix

__all__ = [
    "Answer",
    "Connection",
    "ConnectionLimits",
    "Interface",
    "InterfaceTable",
    "Method",
    "Peer",
    "ServiceInfo",
    "VarlinkServer",
    "listen_unix",
]
