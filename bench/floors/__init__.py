"""Floors of the machine: the same round trip in C and in bare Python, without a server."""
