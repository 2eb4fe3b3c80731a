"""The engine's main loop: doorbells, polling and scheduling on one thread."""
