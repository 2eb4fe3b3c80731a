"""Live screen of a service, until q, Ctrl-C, or the end of standard input's terminal."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator

from rich.console import Console, RenderableType
from rich.live import Live

from .connection import AdminConnection
from .status_view import render
from .target import Target, print_json, show
from .top_view import Sample, TopView


def watch_status(target: Target, *, as_json: bool) -> None:
    """Run `shmserve-admin status --watch`."""
    if as_json:
        _watch_printed(target, 1.0, lambda connection: print_json(connection.status()))
    else:
        _watch(target, 1.0, lambda connection: render(connection.status(), fills_screen=sys.stdout.isatty()))


def watch_rates(target: Target, interval_s: float) -> None:
    """Run `shmserve-admin top`."""
    view = TopView(fills_screen=sys.stdout.isatty())

    def draw(connection: AdminConnection) -> RenderableType:
        latencies = connection.call("Latencies")
        return view.render(Sample(time.monotonic(), connection.status(), latencies["bounds_us"], latencies["stages"]))

    _watch(target, interval_s, draw)


def _watch(target: Target, interval_s: float, draw: Callable[[AdminConnection], RenderableType]) -> None:
    if not sys.stdout.isatty():
        _watch_printed(target, interval_s, lambda connection: show(draw(connection)))
        return
    with target.connection() as connection, contextlib.suppress(KeyboardInterrupt), _keys() as key_within:
        first = draw(connection)  # before the screen switches, so that an error stays readable
        with Live(first, console=Console(highlight=False), screen=True, auto_refresh=False) as live:
            while not key_within(interval_s):
                live.update(draw(connection), refresh=True)


def _watch_printed(target: Target, interval_s: float, look: Callable[[AdminConnection], None]) -> None:
    """Print one sample below the other, for a file or another program."""
    with target.connection() as connection, contextlib.suppress(KeyboardInterrupt), _keys() as key_within:
        while True:
            look(connection)
            sys.stdout.flush()
            if key_within(interval_s):
                return


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Yield a function that waits for a number of seconds and returns whether q was typed; without a terminal it only waits."""
    if not sys.stdin.isatty():

        def wait(seconds: float) -> bool:
            time.sleep(seconds)
            return False

        yield wait
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def quit_within(seconds: float) -> bool:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            ready, _, _ = select.select([descriptor], [], [], left)
            if ready:
                typed = os.read(descriptor, 64)
                if not typed or b"q" in typed.lower():
                    return True
        return False

    try:
        tty.setcbreak(descriptor)
        yield quit_within
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
