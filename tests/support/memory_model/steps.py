"""Rules of the protocols that are not memory orders, and the functions of the source that keep them.

A rule is a sequence of patterns in the text of a function. Each has a control in models.py, in which it is broken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from .source import c_bodies, python_functions

_PUBLISH = (
    ("client_path_try_send", (r"encoder_put\(", r"poller_note\(", r"publish_request\(|ring_publish\(")),
    ("ClientFastPath.try_send", (r"_encoder\._put\(", r"last_seen = ", r"_requests\.publish\(")),
)
_COMPLETE = (
    ("server_path_reply", (r"encoder_put\(", r"complete_reply\(|ring_complete\(")),
    ("ServerFastPath.reply", (r"_encoder\._put\(", r"_replies\.complete\(")),
)
#: For each rule, the functions and what stands in them, in this order.
STEPS: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "publish: the payload before the counter": _PUBLISH,
    "publish: the head before the counter": (
        ("ring_publish", (r"store_relaxed\(&to\[index\]", r"store_release\(&line->counter")),
        ("Slots.publish", (r"_pack_request\(", r"words\[self\._counter\] = ")),
    ),
    "complete: the payload before the sequence": (
        *_COMPLETE,
        ("ChannelState.answer", (r"encoder\.encode\(", r"replies\.complete\(")),
    ),
    "complete: the head before the sequence": (
        ("ring_complete", (r"store_relaxed\(&to\[index\]", r"store_release\(&head->sequence")),
        ("Slots.complete", (r"_pack_before_sequence\(", r"words\[at\] = sequence")),
    ),
    "complete: the sequence before the counter": (
        ("ring_complete", (r"store_release\(&head->sequence", r"store_release\(&line->counter")),
        ("Slots.complete", (r"words\[at\] = sequence", r"words\[self\._counter\] \+= 1")),
    ),
    "reply: only under the sequence that is expected": (
        ("ring_copy_reply", (r"!= sequence\)\s+return false", r"load_relaxed\(&from")),
        ("Slots.reply", (r"!= sequence:\s+return None", r"_unpack_reply\(")),
    ),
    "slot: used again only after its reply is read": (
        ("RequestTable._next_sequence", (r"used = .*in_flight", r"slot not in used")),
        ("RequestTable.poll", (r"try_head\(", r"_decode\(", r"del self\.in_flight\[sequence\]")),
    ),
    "between: no sequence behind the counter": (("RequestReader.between", (r"<= last",)),),
    "cut-through: the byte count of 0 before the write id": (
        ("announce_write", (r"store_relaxed\(&line->written_bytes, 0\)", r"store_release\(&line->write_id")),
    ),
    "cut-through: the write id before any byte": (("write_known", (r"announce_write\(", r"= copy\(walk")),),
    "cut-through: bytes before their number": (
        ("copy_in_pieces", (r"mem(?:cpy|move)\(to \+ done", r"announce_progress\(")),
    ),
    "cut-through: the write id again after the copy": (
        ("cut_through_advance", (r"memcpy\(", r"load_relaxed\(&self->line->write_id\) == write_id", r"self->done = 0")),
    ),
    "cut-through: only bytes of the write that the head names": (
        ("cut_through_take", (r"self->write_id == write_id \? self->done : 0",)),
    ),
    "client: the count of replies is noted before the request is published": _PUBLISH,
    "client: rings after the counter": (
        ("FastPath.try_send", (r"native\.try_send\(|path\.try_send\(", r"self\._ring\(")),
        ("client_path_try_send", (r"ring_publish\(", r"semaphore_try_ring\(")),
        ("ClientFastPath.try_send", (r"_requests\.publish\(", r"_request_bell\.ring\(")),
    ),
    "client: takes the leftover token before it polls": (
        ("ReplyWaiter._wait_at_doorbell", (r"bell\.try_take\(", r"spin_unless_\w+\(", r"self\._sleep\(")),
        ("client_path_wait", (r"drain\(", r"spin_for\(", r"sleep_for\(")),
        ("ClientFastPath.wait", (r"_bell\.try_take\(", r"spin_unless_\w+\(", r"self\._sleep\(")),
    ),
    "engine: rings after the counter": (
        ("ChannelState.answer", (r"replies\.complete\(", r"reply_bell\.ring\(")),
        ("FastPathServing._infer_fast", (r"path\.reply\(", r"reply_bell\.ring\(")),
    ),
    "engine: looks after it has taken the tokens": (
        # The scan leaves out the active channels, which are polled next, before the engine sleeps.
        ("EngineLoop.run", (r"_take_rings\(", r"poll_first\(self\._active\.pollers\)", r"_idle\(")),
        ("EngineLoop._take_rings", (r"_bell\.take\(", r"_rung = True", r"_rung = False", r"_all\.changed\(")),
    ),
    "engine: the token that ended the wait counts as a ring": (
        ("EngineLoop._idle", (r"self\._bell\.wait\(", r"_rung = not self\._bell\.names_channels")),
    ),
    "engine: looks at the channel whose pipe it has read": (
        ("EngineLoop._take_rings", (r"_bell\.take\(", r"for state in rang", r"_look_unless_active\(")),
    ),
    "restart: a request is marked as taken before it runs": (
        ("server_path_try_take", (r"take_request\(|ring_take\(", r"observation_of\(")),
        ("ServerFastPath.try_take", (r"_replies\.take\(",)),
        ("Serving._stage", (r"self\._take\(", r"refusal is not None", r"staging\.observation\(")),
        ("DeviceServing.launch", (r"self\._may_run\(", r"self\._begun\(")),
        ("DeviceServing._may_run", (r"self\._take\(",)),
    ),
    "restart: a request that had begun is not answered as cancelled": (
        ("Serving._refusal", (r"requests\.cancelled\(", r"_LOST if .*\.attempts\(")),
        ("Serving._take", (r"CANCELLED if attempts == 1 else _LOST",)),
    ),
    "cancel: the client looks after it has withdrawn": (
        ("shmserve_cancel", (r"ring_cancel\(", r"!ring_is_taken\(", r"= SLOT_CANCELLED")),
        ("RequestControl.cancel", (r"requests\.cancel\(", r"replies\.taken\(", r"table\.fail\(")),
    ),
    "cancel: the engine looks again after it has taken": (
        ("server_path_try_take", (r"ring_take\(", r"ring_is_cancelled\(", r"observation_of\(")),
        ("ServerFastPath.try_take", (r"_replies\.take\(", r"_requests\.cancelled\(", r"self\._observation\(")),
        ("Serving._take", (r"replies\.take\(", r"requests\.cancelled\(")),
    ),
    "restart: answered requests are left alone": (
        ("ChannelState.open", (r"\.between\(", r"if not replies\.answered\(", r"_admit\(")),
    ),
    "record ring: a full ring drops the entry": (
        ("RecordRingWriter.write", (r"> capacity - \(written - words\[_READ\]\)", r"return False", r"copyto\(")),
    ),
    "record ring: the entry before its count": (("RecordRingWriter.write", (r"copyto\(", r"words\[_WRITTEN\] = ")),),
    "record ring: the copy before its place is given back": (
        ("RecordRingReader.try_next", (r"_copy\(", r"words\[_READ\] = ")),
    ),
}


def function_texts(repository: Path) -> dict[str, str]:
    """The text of every function in C and in Python, by its name; methods by their class and name."""
    texts: dict[str, str] = {}
    for file in sorted((repository / "native").rglob("*.[ch]")):
        texts |= c_bodies(file.read_text())
    for folder in ("shmserve", "client", "daemon"):
        for file in sorted((repository / folder).rglob("*.py")):
            if not any(parent.is_symlink() for parent in (file, *file.parents)):
                texts |= {name: text for name, text in python_functions(file.read_text()).items() if "." in name}
    return texts


def broken(step: str, texts: Mapping[str, str]) -> list[str]:
    """The functions that do not keep this rule, as far as their text shows it."""
    found = []
    for function, patterns in STEPS[step]:
        text, at = texts.get(function, ""), 0
        for pattern in patterns:
            match = re.compile(pattern).search(text, at)
            if match is None:
                found.append(
                    f"{function} has no {pattern!r} where it is due: keep the rule {step!r}, or follow the new text in "
                    "tests/support/memory_model/steps.py"
                )
                break
            at = match.end()
    return found
