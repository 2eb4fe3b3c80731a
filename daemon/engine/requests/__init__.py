"""Execution of requests, from a request's head to its reply."""
