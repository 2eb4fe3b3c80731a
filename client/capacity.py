"""Requested or granted capacity of a client's slots."""

from __future__ import annotations


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
