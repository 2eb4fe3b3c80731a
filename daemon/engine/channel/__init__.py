"""State of one client's channel inside the engine."""
