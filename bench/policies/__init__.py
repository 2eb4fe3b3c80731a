"""Policies of the benchmarks: each file, copied into a folder, is a model package."""
