"""The engine's one thread: what wakes it, whose turn it is."""
