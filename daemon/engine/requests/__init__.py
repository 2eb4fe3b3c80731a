"""From a request's head to its reply."""
