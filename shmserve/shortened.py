"""A text cut to a length for a message, which says so and keeps both ends."""

from __future__ import annotations


def shortened(text: str, limit: int) -> str:
    """`text` in at most `limit` characters: its head and its tail, for the cause of an error often stands at its end.

    >>> shortened("the weights do not fit", 60)
    'the weights do not fit'
    >>> shortened("RuntimeError: " + "x" * 300 + " does not fit", 70)
    'RuntimeError: xxxx ... (327 characters in all) ... xxxxxx does not fit'
    """
    if len(text) <= limit:
        return text
    mark = f" ... ({len(text)} characters in all) ... "
    room = limit - len(mark)
    if room < 2:
        return text[:limit]
    head = room // 2
    return text[:head] + mark + text[head - room :]
