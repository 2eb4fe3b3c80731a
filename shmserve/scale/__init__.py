"""Serving of packages past one machine: the replica that answers links, and its deployment on Ray Serve."""
