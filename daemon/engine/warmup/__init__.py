"""Runs a model before it serves, and judges what it gives."""
