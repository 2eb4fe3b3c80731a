"""Warm-up of a model: runs it before it serves, and validates its actions."""
