"""Interface between the supervisor and its engines: messages, counters, the release check.

An engine is a process that runs a model's code, so the supervisor trusts nothing that it sends or counts: messages are
checked field by field, and counters are read as numbers only.
"""
