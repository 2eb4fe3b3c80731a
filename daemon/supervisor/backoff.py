"""Backoff of engine restarts.

The delay grows while engines of one model keep dying by themselves. A death that a client's request caused adds no delay,
because the other clients must not wait for it; and another model starts at zero. Nor does the death of an engine that had served for `STEADY_S`, where
a spare engine is ready: the next one serves at once, so the requests do not wait either.

>>> backoff = Backoff()
>>> [backoff.delay_s("v1", now_s, of_client=False) for now_s in (0.0, 2.0, 4.0)]
[0.0, 0.1, 0.5]
>>> backoff.delay_s("v1", 6.0, of_client=True)     # caused by one client
0.0
>>> backoff.delay_s("v1", 8.0, of_client=False), backoff.delay_s("v2", 9.0, of_client=False)
(1.0, 0.0)
>>> backoff.delay_s("v2", 30.0, of_client=False)
0.0
"""

from __future__ import annotations

_DELAYS_S = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
#: A death this long after the last one starts at zero again.
_QUIET_S = 10.0
#: An engine that dies sooner after it began to serve would die again at once.
STEADY_S = 1.0


class Backoff:
    """Grows while engines of one model keep dying by themselves."""

    def __init__(self) -> None:
        self._deaths = 0
        self._last_s = -_QUIET_S
        self._of: object = None

    def delay_s(self, model: object, now_s: float, *, of_client: bool) -> float:
        """Return the delay after an engine of `model` died or failed to start; `of_client`: a client's request was running."""
        if of_client:
            return 0.0
        self._deaths = self._deaths + 1 if now_s - self._last_s < _QUIET_S and model == self._of else 0
        self._last_s, self._of = now_s, model
        return _DELAYS_S[min(self._deaths, len(_DELAYS_S) - 1)]
