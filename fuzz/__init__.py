"""Arbitrary bytes for every reader of bytes that somebody else wrote. `make fuzz`; docs/development/test-runs.md has the figures."""
