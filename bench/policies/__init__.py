"""What the benchmarks serve: each file, copied into a folder, is a model package."""
