"""Keeps one engine serving: starts, swaps, watches and replaces engine processes."""
