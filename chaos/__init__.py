"""Kills, stops and starves the processes of a service, and counts what became of every request. `make chaos`."""
