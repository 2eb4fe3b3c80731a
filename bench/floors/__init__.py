"""What the machine itself allows: the same round trip in C and in bare Python, with nothing of a server in it."""
