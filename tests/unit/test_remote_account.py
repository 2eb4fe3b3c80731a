"""The account of chaos.remote_links: what counts as too long, and as a pause of the machine."""

from __future__ import annotations

from chaos.processor_watch import Pause, Pauses
from chaos.remote_account import Happened, account
from chaos.remote_robot import Call


def call(taken_s: float, *, no_processor_s: float = 0.0) -> Call:
    """A call at 10 s, whose fallback ran 2 ms before its end."""
    ended_s = 10 + taken_s - 0.002
    return Call(10.0, taken_s, "fallback", "00", 0.001, ended_s - 0.001, ended_s, no_processor_s)


def test_a_long_call_is_shown_with_its_stages_and_the_event_before_it() -> None:
    lines = account([call(0.02), call(0.1)], [], [Happened("kill", 8.0, 9.5)], Pauses(), budget_s=0.08)

    assert "longer than budget + 10 ms (90 ms): 1, of them 0 while the machine gave no processor" in lines[3]
    (line,) = lines[4:]
    assert line == (
        "  100 ms, 0.50 s after the end of: kill: waiting for the engine 1.0, waiting for the remote 96.0, "
        "fallback model 1.0, on the way back 2.0 (ms)"
    )


def test_a_pause_explains_a_call_only_if_one_thread_lost_as_much_as_it_was_too_long() -> None:
    threads = [Pause(10.0, 10.02, 0.008, "engine 7, other threads", thread) for thread in (8, 9)]
    short, long = Pauses(threads), Pauses([*threads, Pause(10.0, 10.03, 0.03, "engine 7, serving thread", 7)])

    assert "1, of them 0" in account([call(0.105)], [], [], short, budget_s=0.08)[3]
    assert "1, of them 1" in account([call(0.105)], [], [], long, budget_s=0.08)[3]
    assert "1, of them 1" in account([call(0.105, no_processor_s=0.02)], [], [], Pauses(), budget_s=0.08)[3]
