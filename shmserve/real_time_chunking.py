"""Names of real-time chunking: the declaration of a package, and the entries that ActionChunks adds to an observation.

A policy that declares `real_time_chunking` gets, beside the robot's own entries, what it needs to continue the chunk that
the robot executes while it computes the next one.
"""

from __future__ import annotations

from typing import Any, Final

#: Key of [model] in model.toml, and of the model's description.
DECLARATION: Final = "real_time_chunking"
#: int: the rows, counted from the observation on, that the robot executes before it uses the reply.
INFERENCE_DELAY: Final = "inference_delay"
#: array [rows, ...] (or a tree of them): the rest of the chunk that the robot executes; row 0 is for the time of the observation.
LEFT_OVER: Final = "prev_chunk_left_over"
#: What ActionChunks adds; all of them, or none.
ENTRIES: Final = (INFERENCE_DELAY, LEFT_OVER)


def delivered(observation: Any, *, is_wanted: bool) -> Any:
    """Return an observation with these entries as the policy gets it: without them if it does not want them, or no row is left.

    >>> delivered({"state": 1, "inference_delay": 3, "prev_chunk_left_over": [0.5]}, is_wanted=True)
    {'state': 1, 'inference_delay': 3, 'prev_chunk_left_over': [0.5]}
    """
    if is_wanted and type(observation) is dict:
        # A program in C++ declares one structure, with no rows where nothing is to be continued.
        rows = getattr(observation.get(LEFT_OVER), "shape", ())
        if tuple(rows[:1]) != (0,):
            return observation
    return without_entries(observation)


def without_entries(observation: Any) -> Any:
    """Return an observation without the entries of real-time chunking: a copy, or itself if it is not a dict.

    >>> without_entries({"state": 1, "inference_delay": 3, "prev_chunk_left_over": 2}), without_entries([0.5])
    ({'state': 1}, [0.5])
    """
    if type(observation) is not dict:
        return observation
    return {name: value for name, value in observation.items() if name not in ENTRIES}
