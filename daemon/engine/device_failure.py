"""Failures of the device that end a request or the whole engine."""

from __future__ import annotations

#: EX_TEMPFAIL: nothing is wrong with the model or its settings.
EXIT_STATUS = 75


class DeviceError(RuntimeError):
    """The device failed while it ran this request, and its context is lost."""


class DeviceLost(BaseException):
    """No later call of this process can succeed: the engine must end, with EXIT_STATUS and without cleaning up.

    Not an Exception: code that answers one request and goes on with the next must not catch it.
    """
