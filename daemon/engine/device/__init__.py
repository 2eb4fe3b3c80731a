"""Serving on a GPU: memory, streams, waiting, CUDA graphs and errors on the way of observations and actions.

Only `cuda.py` calls CUDA. All other modules use the `Device` of `interface.py`, so that tests can replace it with a
device that runs copies as late as a GPU may.
"""
