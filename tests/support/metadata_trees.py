"""Trees for the tests of metadata."""

import io
import pickle


def nested(depth: int, innermost: object = None) -> object:
    for _ in range(depth):
        innermost = [innermost]
    return innermost


def fast_pickle(tree: object) -> bytes:
    """What the pickler makes of a tree without leaves, when `dump` does not check it first."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 5)
    pickler.fast = True
    pickler.dump(tree)
    return file.getvalue()
