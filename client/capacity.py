"""Requested or granted capacity of a client's slots."""

from __future__ import annotations

from shmserve.layout import MAX_METADATA_BYTES, MAX_PAYLOAD_BYTES


class SlotCapacity:
    """Number and size of the slots; the sizes only grow, and survive a connection."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.request_metadata = 0
        self.request_bytes = 0
        self.reply_metadata = 0
        self.reply_bytes = 0

    def copy(self) -> SlotCapacity:
        """Return a copy, which does not grow with this one."""
        other = SlotCapacity(self.slots)
        other.assign(self)
        return other

    def assign(self, other: SlotCapacity) -> None:
        """Take over the sizes of another one."""
        vars(self).update(vars(other))

    def with_headroom(self, granted: SlotCapacity) -> SlotCapacity:
        """Return this capacity, but with half as much again as `granted` for each size that exceeds it.

        The lengths in an observation may grow a little with each request, and the channel must not be resized each time.

        >>> granted, wanted = SlotCapacity(4), SlotCapacity(4)
        >>> granted.grow_requests(80, 1000)
        >>> wanted.grow_requests(80, 1001)
        >>> vars(wanted.with_headroom(granted))
        {'slots': 4, 'request_metadata': 80, 'request_bytes': 1500, 'reply_metadata': 0, 'reply_bytes': 0}
        """
        wanted = self.copy()
        for name, limit in _LIMITS.items():
            before, needed = getattr(granted, name), getattr(self, name)
            if needed > before:
                setattr(wanted, name, max(needed, min(before + before // 2, limit)))
        return wanted

    def exceeds(self, granted: SlotCapacity) -> bool:
        """Return whether this capacity has a size that is larger than what was granted."""
        return any(getattr(self, name) > getattr(granted, name) for name in _LIMITS)

    def reset(self) -> None:
        """Forget the sizes."""
        self.assign(SlotCapacity(self.slots))

    def grow_requests(self, metadata_bytes: int, payload_bytes: int) -> None:
        """Require room for a request of this size."""
        self.request_metadata = max(self.request_metadata, metadata_bytes)
        self.request_bytes = max(self.request_bytes, payload_bytes)

    def grow_replies(self, metadata_bytes: int, payload_bytes: int) -> None:
        """Require room for a reply of this size."""
        self.reply_metadata = max(self.reply_metadata, metadata_bytes)
        self.reply_bytes = max(self.reply_bytes, payload_bytes)


#: The largest sizes that a channel can have.
_LIMITS = {
    "request_metadata": MAX_METADATA_BYTES,
    "request_bytes": MAX_PAYLOAD_BYTES,
    "reply_metadata": MAX_METADATA_BYTES,
    "reply_bytes": MAX_PAYLOAD_BYTES,
}
