"""The daemon's settings: their types, limits and sources."""
