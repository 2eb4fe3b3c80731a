"""Memory orders and steps that a model is built with: those of the source, or one of them changed."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from .machine import Order, Thread


class Backend(Enum):
    """The code that an end of a channel runs."""

    NATIVE = "native"
    PURE = "pure"  # with the fences of shmserve/fence.py, where the processor reorders
    PURE_X86 = "pure on x86-64"  # without them: each load is an acquire there, and each store a release


class Given:
    """The source of a model's orders and steps while it is built; it notes which are used."""

    def __init__(self, orders: Mapping[str, Order], changed: str = "") -> None:
        """Change one site to relaxed, or one step to its wrong variant; '' changes nothing."""
        self._orders = orders
        self._changed = changed
        self.sites: set[str] = set()
        self.steps: set[str] = set()

    def order(self, site: str) -> Order:
        """The order of an operation of the source, by its name in sites.py."""
        self.sites.add(site)
        order = self._orders[site]
        return Order.RELAXED if site == self._changed else order

    def keeps(self, step: str) -> bool:
        """Whether the protocol keeps this rule; a control breaks it."""
        self.steps.add(step)
        return step != self._changed


class End:
    """One end of a channel: its thread, and the orders of its backend."""

    def __init__(self, thread: Thread, given: Given, backend: Backend) -> None:
        self.thread = thread
        self.given = given
        self.backend = backend

    @property
    def is_native(self) -> bool:
        return self.backend is Backend.NATIVE

    def native(self, site: str) -> Order:
        """The order of an operation that the native core does with an order, and pure Python without."""
        return self.given.order(site) if self.is_native else self.load

    @property
    def load(self) -> Order:
        """The order of a load in Python code."""
        return Order.ACQUIRE if self.backend is Backend.PURE_X86 else Order.RELAXED

    @property
    def store(self) -> Order:
        """The order of a store in Python code."""
        return Order.RELEASE if self.backend is Backend.PURE_X86 else Order.RELAXED

    def full_fence(self, native: str, pure: str) -> None:
        """A fence that keeps a load behind an earlier store, on every processor."""
        self.thread.fence(self.given.order(native if self.is_native else pure))

    def fence(self, site: str) -> None:
        """A fence of Python code, which an x86-64 omits."""
        order = self.given.order(site)
        if self.backend is not Backend.PURE_X86:
            self.thread.fence(order)
