"""One process for one model version: the only part of shmserve that imports torch."""
