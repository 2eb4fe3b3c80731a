"""Errors of recordings.

ShmServeError
  RecordingError (ValueError)     not a recording, or one with damage; the message says where
    RecordingTruncated            it was cut off: the requests before are complete
"""

from __future__ import annotations

from shmserve.errors import ShmServeError


class RecordingError(ShmServeError, ValueError):
    """Not a recording, or a damaged one; the message says which file, where, and what is wrong."""


class RecordingTruncated(RecordingError):
    """The recording was cut off: the recorder was killed, or the file truncated. The requests before are complete."""
