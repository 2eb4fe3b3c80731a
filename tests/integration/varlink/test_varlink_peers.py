"""Peers of the varlink server that dawdle, do not read, hang up or die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from shmserve.daemon.varlink.connection import ConnectionLimits
from tests.support.varlink_service import (
    Service,
    echo_call,
    echo_reply,
    eventually,
    read_messages,
    read_to_the_end,
)


@pytest.mark.fault("T62", "T85")
def test_a_peer_that_dawdles_is_closed_and_one_that_is_quiet_between_calls_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Service(tmp_path, ConnectionLimits(message_timeout_s=1)) as service, service.raw() as patient:
        patient.sendall(echo_call("first"))
        with service.raw() as silent, service.raw() as half, service.raw() as late:
            half.sendall(b'{"method"')
            late.sendall(echo_call("first") + b'{"method"')
            with suppress(ConnectionError), service.raw() as dribbling:
                while True:  # until the service hangs up
                    dribbling.sendall(b" ")
                    time.sleep(0.01)
            assert read_to_the_end(silent) == b""
            assert read_to_the_end(half) == b""
            assert read_to_the_end(late) == echo_reply("first")
        patient.sendall(echo_call("second"))
        assert read_messages(patient, 2) == echo_reply("first") + echo_reply("second")

    assert "no complete message in 1 s" in caplog.text


def test_a_long_method_is_no_dawdling_of_the_peer(tmp_path: Path) -> None:
    with Service(tmp_path, ConnectionLimits(message_timeout_s=0.2)) as service, service.raw() as sock:
        # While a call waits behind the one in hand, nothing is read: half of the third call has arrived, and its other
        # half could not.
        third = echo_call("third")
        sock.sendall(echo_call("held 1") + echo_call("held 2") + third[:20])
        eventually(lambda: service.connections)
        time.sleep(0.5)
        sock.sendall(third[20:])
        service.release.set()
        assert read_messages(sock, 3) == echo_reply("held 1") + echo_reply("held 2") + echo_reply("third")


def test_a_peer_that_does_not_read_its_replies_is_closed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Service(tmp_path, ConnectionLimits(write_timeout_s=0.2)) as service, service.raw() as sock:
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while True:
                sock.sendall(echo_call("x" * 60000))
        eventually(lambda: not service.open_connections())
    assert "it did not read a reply in 0.2 s" in caplog.text


def test_a_slow_reader_gets_every_byte(tmp_path: Path) -> None:
    with Service(tmp_path) as service, service.raw() as sock:
        sender = threading.Thread(target=sock.sendall, args=(echo_call("x" * 60000) * 20,))
        sender.start()
        time.sleep(0.2)  # the service has filled its buffer, and waits
        received = b""
        while received.count(b"\0") < 20:
            received += sock.recv(1000)
        sender.join()
        assert received == echo_reply("x" * 60000) * 20
        busy_s = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - busy_s < 0.25  # having waited for room, it does not spin on there being some


def test_a_peer_that_hangs_up_cancels_its_method(tmp_path: Path) -> None:
    with Service(tmp_path) as service:
        with service.raw() as sock:
            sock.sendall(b'{"method":"org.example.Test.Wait"}\0')
            assert service.waiting.wait(30)
        assert service.cancelled.wait(30)
        eventually(lambda: service.closed)
        assert list(service.closed.values()) == ["the peer closed it"]
        eventually(lambda: not service.open_connections())


def test_a_peer_that_hangs_up_in_the_middle_of_a_reply_is_not_an_error(tmp_path: Path) -> None:
    with Service(tmp_path) as service:
        with service.raw() as sock:
            sock.sendall(
                b'{"method":"org.example.Test.GiveFds","parameters":{"count":30,"padding":60000},"more":true}\0'
            )
            read_messages(sock, 1)
            time.sleep(0.2)  # the service has filled its buffer, and waits in the middle of a reply
        eventually(lambda: not service.open_connections())


FORKING_CLIENT = """
import os, signal, socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sock.sendall(b'{"method":"org.example.Test.%s","parameters":{"text":"x"}}\\0' % sys.argv[2].encode())
child = os.fork()
if child == 0:
    signal.pause()  # with the socket open
print(child, flush=True)
signal.pause()
"""


@pytest.mark.fault("T50")
@pytest.mark.parametrize("method", ["Echo", "Wait"])
def test_a_killed_peer_is_noticed_although_its_child_keeps_the_socket_open(tmp_path: Path, method: str) -> None:
    with Service(tmp_path) as service:
        command = [sys.executable, "-c", FORKING_CLIENT, service.path, method]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            child = int(process.stdout.readline())
            try:
                eventually(lambda: service.connections)
                assert not service.closed
                process.send_signal(signal.SIGKILL)  # and nobody waits for it: a zombie is dead enough
                eventually(lambda: service.closed)
                os.kill(child, 0)  # alive, socket and all
            finally:
                process.kill()
                os.kill(child, signal.SIGKILL)
        assert list(service.closed.values()) == ["its process ended"]
        assert service.cancelled.is_set() == (method == "Wait")
