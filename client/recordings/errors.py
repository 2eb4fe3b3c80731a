"""What can be wrong with a recording.

ShmServeError
  RecordingError (ValueError)     not a recording, or one with damage; the message says where
    RecordingTruncated            it ends before its end: what is before that is whole
"""

from __future__ import annotations

from shmserve.errors import ShmServeError


class RecordingError(ShmServeError, ValueError):
    """Not a recording, or a damaged one; the message says which file, where, and what is wrong."""


class RecordingTruncated(RecordingError):
    """It ends before its end: the recorder was killed, or the file was cut. What is before that is whole."""
