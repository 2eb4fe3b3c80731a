"""Benchmarks of scale: more clients, idle clients, updates, batches."""
