"""Recordings of requests and replies: `Recording` reads them; docs/how-to/recording.md."""

from .errors import RecordingError, RecordingTruncated
from .recording import RecordedRequest, Recording

__all__ = ["RecordedRequest", "Recording", "RecordingError", "RecordingTruncated"]
