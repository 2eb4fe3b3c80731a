"""Serves a PyTorch policy to the robot processes of one host through shared memory.

The package has one core and two sides that never import each other; imports run downwards only
(held by import-linter, see pyproject.toml):

    client/  daemon/                      the robot's side, the service's side
    channel  varlink_connection           one client's channel; one caller's control connection
    directories  contract  package_signature
    ring  varlink_socket  package_files   who writes which word, and in which order
    codec  varlink                        a tree of arrays, a control message <-> bytes
    schema  strict_json                   the structure of one observation
    metadata  segment  doorbell  spin  fence
    errors
    layout                                where every byte is
    protocol                              what the words mean
"""

__version__ = "0.1.0"
