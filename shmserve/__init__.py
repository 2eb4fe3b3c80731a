"""Serves a PyTorch policy to the robot processes of one host through shared memory.

The package has one core and two sides that never import each other; imports run downwards only
(held by import-linter, see pyproject.toml):

    client/  daemon/                        the robot's side, the service's side
    channel  varlink_connection directories one client's lane, the control plane, where the sockets are
    ring                                    who writes which word, and in which order
    codec                                   a tree of arrays <-> the bytes of a slot
    schema                                  the structure of one observation
    metadata segment doorbell spin fence varlink
    errors
    layout                                  where every byte is
    protocol                                what the words mean
"""

__version__ = "0.1.0"
