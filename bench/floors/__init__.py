"""What the machine itself allows: the same round trip in C, with nothing of a server in it."""
