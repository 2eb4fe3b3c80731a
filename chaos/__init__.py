"""Chaos runs: kill, stop and starve the processes of a service, and account for every request. `make chaos`."""
