"""Calls of a policy's `warm()`, shortly before a request that is expected."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ..device_failure import DeviceLost
from ..error_text import log_message

log = logging.getLogger(__name__)

#: A call that takes longer delays the request that it is for; after this many in a row the method is called no more.
LONGEST_NS, MOST_LONG_CALLS = 400_000, 5


class PolicyWarming:
    """The policy's method, for as long as it is quick and does not raise."""

    def __init__(self, warm: Callable[[], object]) -> None:
        self._warm: Callable[[], object] | None = warm
        self._long_calls = 0

    def run(self) -> None:
        """Call the method."""
        if self._warm is None:
            return
        began_ns = time.monotonic_ns()
        try:
            self._warm()
        except DeviceLost:
            raise
        except BaseException as error:  # noqa: BLE001  the policy's own code
            self._warm = None
            log.error("warm() of the policy failed, and is called no more\n%s", log_message(error))
            return
        took_ns = time.monotonic_ns() - began_ns
        self._long_calls = self._long_calls + 1 if took_ns > LONGEST_NS else 0
        if self._long_calls >= MOST_LONG_CALLS:
            self._warm = None
            log.warning(
                "warm() of the policy took %.1f ms, longer than the %.1f ms for which the engine is awake ahead: it is "
                "called no more",
                took_ns / 1e6,
                LONGEST_NS / 1e6,
            )
