"""One client's channel inside the engine."""
