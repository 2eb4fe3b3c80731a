"""How observations reach a GPU and actions come back: memory, streams, waiting, graphs, and what may go wrong there.

Only `cuda.py` calls CUDA. Everything else speaks to the `Device` of `interface.py`, so that it can be tested with one
that runs copies as late as a GPU may.
"""
