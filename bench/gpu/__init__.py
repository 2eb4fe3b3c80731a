"""Benchmarks on a GPU: copies against a bare page-locked copy, round trips against a call in process, a swap."""
