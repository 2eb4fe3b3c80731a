"""Recordings of what a service was asked and what it answered: read them with `Recording`; docs/recording.md."""

from .errors import RecordingError, RecordingTruncated
from .recording import RecordedRequest, Recording

__all__ = ["RecordedRequest", "Recording", "RecordingError", "RecordingTruncated"]
