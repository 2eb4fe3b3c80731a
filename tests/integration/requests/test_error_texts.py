"""What crosses to a client tells it nothing of the daemon, and what a client says reaches the log bounded and quoted."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from shmserve.client.capacity import SlotCapacity
from shmserve.layout import sequence_of
from shmserve.protocol import WIRE_VERSION, Status
from shmserve.varlink import VarlinkError
from shmserve.varlink_connection import VarlinkConnection
from tests.support.daemon_process import Daemon
from tests.support.raw_channel import RawChannel

pytestmark = pytest.mark.sealed_too

#: Of a daemon: paths, addresses, names of shared memory, stacks.
_PRIVATE = re.compile(r"/(?!dev/shm\b)[\w.-]+/[\w.-]+|0x[0-9a-f]{8,}|shmserve\.[0-9a-f]{12}|Traceback|File \"|\.py\b")
_FORGED = "\x1b[31m\n12:00:00 ERROR   shmserved: forged\r\u202e"


@pytest.fixture(scope="module", params=["named", "sealed"])
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    config = "trusted_uids = []\nban_s = 0\nmax_clients = 3\nmax_channel_bytes = 4_194_304\n"
    daemon = Daemon("leaky", arguments=("--transport", request.param), config=config)
    try:
        yield daemon.start()
    finally:
        daemon.dismiss()


def texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from texts_of(key)
            yield from texts_of(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from texts_of(item)
    elif isinstance(value, str):
        yield value


def assert_says_nothing(*told: Any) -> None:
    for text in texts_of(told):
        assert not _PRIVATE.search(text), text
        assert len(text) <= 600
        assert text.isprintable(), repr(text)


@pytest.mark.fault("T45")
@pytest.mark.parametrize("fail", ["path", "relative", "address", "traceback", "torch", "script", "none"])
def test_a_failing_model_s_text_holds_no_path_address_or_stack(daemon: Daemon, fail: str) -> None:
    with RawChannel(daemon) as raw:
        head = raw.head({"fail": fail})
        raw.publish(head)
        reply, told = raw.reply(head.sequence)

    assert reply.status == Status.FAILED
    assert_says_nothing(told)
    assert told[0] and told[1], told


@pytest.mark.fault("T46")
def test_client_text_in_an_error_of_the_model_is_cut_and_quoted_in_the_log(daemon: Daemon) -> None:
    with RawChannel(daemon) as raw:
        for _ in range(60):
            head = raw.head({"fail": "client", "text": _FORGED * 500})
            raw.publish(head)
            reply, told = raw.reply(head.sequence)

            assert reply.status == Status.FAILED
            assert_says_nothing(told)
    assert_log_is_plain(daemon)
    assert daemon.log.count("the model failed on a request of client") <= 40, "they are limited to so many a second"


def test_a_client_gets_the_reason_for_a_closed_channel_in_numbers(daemon: Daemon) -> None:
    for damage in ("counter", "slot", "number"):
        with RawChannel(daemon) as raw:
            first = raw.head({"x": 1})
            raw.publish(first)
            raw.reply(first.sequence)
            if damage == "counter":
                raw.count(sequence_of(1 << 20, 0))
            elif damage == "slot":
                raw.count(sequence_of(2, 63))
            else:
                raw.publish(raw.head({"x": 1})._replace(sequence=sequence_of(5, 0)))
            raw.wait_evicted()

            assert_says_nothing(str(raw.attachment.close_error()).replace(str(daemon.service_dir), ""))
    assert_log_is_plain(daemon)


def test_a_request_that_cannot_be_read_is_rejected_in_words_about_itself(daemon: Daemon) -> None:
    wrong: list[dict[str, int]] = [
        {"kind": 99},
        {"metadata_bytes": 0},
        {"metadata_bytes": 1 << 40},
        {"payload_bytes": 1 << 40},
        {"payload_bytes": 1},
        {"schema": 77, "metadata_bytes": 9},
    ]
    with RawChannel(daemon) as raw:
        for number, each in enumerate(wrong):
            head = raw.head({"text": _FORGED * 20, "array": np.arange(10)})
            raw.publish(head._replace(**{"schema": 1000 + number, **each}))
            reply, told = raw.reply(head.sequence)

            assert reply.status == Status.REJECTED
            assert_says_nothing(told)
        text = raw.head({"text": "x" * 300})
        raw.requests.memory(text.sequence).payload[:300] = 0xFF
        raw.publish(text)
        assert_says_nothing(raw.reply(text.sequence)[1])
    assert_log_is_plain(daemon)


@pytest.mark.fault("T45")
def test_no_answer_of_the_control_socket_says_where_the_daemon_lives(daemon: Daemon) -> None:
    wanted = vars(SlotCapacity(1))
    attach: dict[str, Any] = {"wire_version": WIRE_VERSION, "wanted": wanted, "program": _FORGED * 9}
    calls: list[tuple[str, dict[str, Any]]] = [
        ("io.shmserve.Client.Attach", {**attach, "wire_version": 99}),
        ("io.shmserve.Client.Attach", {**attach, "wanted": {**wanted, "slots": -1}}),
        ("io.shmserve.Client.Attach", {**attach, "wanted": {**wanted, "request_bytes": 1 << 32}}),
        ("io.shmserve.Client.Attach", {}),
        ("io.shmserve.Client.Attach", attach),
        ("io.shmserve.Client.Attach", attach),
        ("io.shmserve.Client.Resize", {"wanted": wanted, "published": -1, "deferred": []}),
        ("io.shmserve.Client.Resize", {"wanted": wanted, "published": 9, "deferred": [_FORGED]}),
        ("io.shmserve.Client.Describe", {"x": _FORGED}),
        ("io.shmserve.Client.Nothing", {}),
        ("io.shmserve.Admin.Status", {}),
        ("no.such.interface", {}),
    ]
    told: list[Any] = []
    with VarlinkConnection.connect(daemon.client_socket, 30.0, accept_fds=8) as connection:
        for method, parameters in calls:
            try:
                found = connection.call(method, parameters, timeout_s=30.0).parameters
                if "channel_info" in found:
                    del found["channel_info"]["names"]  # the client's own
                told.append({key: value for key, value in found.items() if key != "model"})
            except VarlinkError as error:
                told.append((error.error, error.parameters))
        for _ in range(2):
            with RawChannel(daemon), RawChannel(daemon):
                try:
                    RawChannel(daemon)
                except Exception as error:  # noqa: BLE001  whatever it is, its text is what matters
                    told.append(str(error))
    for garbage in (
        b"\0",
        b"{}\0",
        b"\xff\0",
        b'{"method":"a\\nb.c"}\0',
        b"x" * 70_000,
        b'{"method":"' + b"a" * 300 + b'"}\0',
    ):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(str(daemon.client_socket))
            sock.sendall(garbage)
            told.append(sock.recv(1 << 16).decode().rstrip("\0"))

    assert len(told) == len(calls) + 8, told
    assert_says_nothing(told)
    assert_log_is_plain(daemon)


def assert_log_is_plain(daemon: Daemon) -> None:
    log = daemon.log
    assert max(map(len, log.splitlines())) < 1500
    assert all(line.isprintable() for line in log.split("\n")), [
        line for line in log.split("\n") if not line.isprintable()
    ]
    assert not re.search(r"^12:00:00 ERROR", log, re.MULTILINE)
    assert len(log) < 2_000_000
