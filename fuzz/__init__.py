"""Fuzzing of every parser of untrusted bytes: `make fuzz`; docs/development/test-runs.md has the figures."""
