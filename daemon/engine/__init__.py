"""The engine process, one for each model version: the only part of shmserve that imports torch."""
