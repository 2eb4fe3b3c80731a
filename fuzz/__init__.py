"""Arbitrary bytes for every reader of bytes that somebody else wrote. `make fuzz`; docs/faults.md has the figures."""
