"""Peers: every other way for a robot process to query a model on the same host, measured side by side."""
