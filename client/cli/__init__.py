"""shmserve-admin: what an operator asks of a running service."""
