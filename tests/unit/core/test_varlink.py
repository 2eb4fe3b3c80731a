"""Varlink messages against bytes written out by hand, and the blocking connection against a scripted service."""

from __future__ import annotations

import array
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shmserve.strict_json import _depth
from shmserve.varlink import (
    MESSAGE_LIMIT,
    NAME_LIMIT,
    Call,
    Framer,
    Reply,
    VarlinkError,
    VarlinkProtocolError,
    decode_call,
    decode_reply,
    encode_call,
    encode_error,
    encode_reply,
    optional,
    required,
)
from shmserve.varlink_connection import VarlinkConnection
from shmserve.varlink_socket import PATH_LIMIT, receive_part

DEEPEST: list[object] = []
for _ in range(29):
    DEEPEST = [DEEPEST]


def test_a_call_is_these_bytes() -> None:
    assert encode_call("io.shmserve.Client.Attach") == b'{"method":"io.shmserve.Client.Attach","parameters":{}}\0'
    assert encode_call("a.b.C", {"n": 1}, more=True) == b'{"method":"a.b.C","parameters":{"n":1},"more":true}\0'
    assert encode_call("a.b.C", oneway=True) == b'{"method":"a.b.C","parameters":{},"oneway":true}\0'


def test_a_reply_and_an_error_are_these_bytes() -> None:
    assert encode_reply() == b'{"parameters":{}}\0'
    assert (
        encode_reply({"text": "é\0"}, continues=True) == b'{"parameters":{"text":"\xc3\xa9\\u0000"},"continues":true}\0'
    )
    assert encode_error("a.b.No", {"why": None}) == b'{"error":"a.b.No","parameters":{"why":null}}\0'


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (b'{"method":"a.b.C"}', Call("a.b.C")),
        (b' {"method": "a.b.C", "parameters": null, "more": null} ', Call("a.b.C")),
        (b'{"method":"a.b.C","future":[1],"more":true}', Call("a.b.C", more=True)),
        (b'{"method":"a.b.C","parameters":{"x":[1,{}]},"oneway":true}', Call("a.b.C", {"x": [1, {}]}, oneway=True)),
        (b'{"method":"a.b.C","upgrade":true}', Call("a.b.C", upgrade=True)),
        (b'{"method":"a.b.C","parameters":{"x":-9223372036854775808}}', Call("a.b.C", {"x": -(2**63)})),
        (b'{"method":"a.b.C","parameters":{"x":18446744073709551615}}', Call("a.b.C", {"x": 2**64 - 1})),
        (b'{"method":"a.b.C","parameters":{"x":"\\ud83e\\udd16"}}', Call("a.b.C", {"x": "\N{ROBOT FACE}"})),
        (b'{"method":"a.b.C","parameters":{"x":' + b"[" * 30 + b"]" * 30 + b"}}", Call("a.b.C", {"x": DEEPEST})),
    ],
)
def test_a_call_of_another_implementation_is_understood(message: bytes, call: Call) -> None:
    assert decode_call(message) == call


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "not JSON at character 0"),
        (b"[]", "no object"),
        (b"nonsense", "not JSON"),
        (b'{"method":"a.b.C"} x', "not JSON at character 19"),
        (b'{"parameters":{}}', "names no method"),
        (b'{"method":7}', "'method' is not of JSON type string"),
        (b'{"method":"a.b.C","parameters":[]}', "'parameters' is not of JSON type object"),
        (b'{"method":"a.b.C","more":1}', "'more' is not of JSON type boolean"),
        (b'{"method":"a.b.C","more":true,"oneway":true}', "more than one of"),
        (b'{"method":"a.b.C","method":"a.b.D"}', "same key twice"),
        (b'{"method":"a.b.C","parameters":{"x":{"y":1,"y":1}}}', "same key twice"),
        (b'{"method":"a.b.C","parameters":{"x":NaN}}', "not finite"),
        (b'{"method":"a.b.C","parameters":{"x":-Infinity}}', "not finite"),
        (b'{"method":"a.b.C","parameters":{"x":1e999}}', "too large for a double"),
        (b'{"method":"a.b.C","parameters":{"x":18446744073709551616}}', "does not fit 64 bits"),
        (b'{"method":"a.b.C","parameters":{"x":-9223372036854775809}}', "does not fit 64 bits"),
        (b'{"method":"a.b.C","parameters":{"x":' + b"9" * 60000 + b"}}", "does not fit 64 bits"),
        (b'{"method":"a.b.C","parameters":{"x":"\\ud800"}}', "surrogate"),
        (b'{"method":"a.b.C","parameters":{"\\udfff":1}}', "surrogate"),
        (b'{"method":"a.b.\xff"}', "not UTF-8 at byte 15"),
        (b'{"method":"a.b.\xed\xa0\x80"}', "not UTF-8"),
        ('{"method":"a.b.C"}'.encode("utf-16"), "not UTF-8"),
        (b'\xef\xbb\xbf{"method":"a.b.C"}', "not JSON"),
        (b'{"method":"a.b.C","parameters":{"x":' + b"[" * 31 + b"]" * 31 + b"}}", "deeper than 32"),
        (b"[" * 60000, "deeper than 32"),
        (b'{"method":' * 6000, "deeper than 32"),
        (b'{"method":"' + b"a." * NAME_LIMIT + b'"}', f"has {2 * NAME_LIMIT} characters"),
        (b" " * MESSAGE_LIMIT, "longer than 65536 bytes"),
    ],
)
def test_a_message_that_is_not_a_call_is_refused_with_a_reason(message: bytes, reason: str) -> None:
    with pytest.raises(VarlinkProtocolError, match=reason):
        decode_call(message)


def test_a_reply_of_another_implementation_is_understood() -> None:
    assert decode_reply(b"{}") == Reply()
    assert decode_reply(b'{"parameters":{"x":1},"continues":true,"new":0}') == Reply({"x": 1}, continues=True)
    assert decode_reply(b'{"error":"a.b.No"}') == Reply(error="a.b.No")
    with pytest.raises(VarlinkProtocolError, match="continues"):
        decode_reply(b'{"error":"a.b.No","continues":true}')


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.binary() | st.text().map(str.encode))
@example(b'{"method":"a.b.C","parameters":{"a":1e400}}')
def test_random_bytes_give_a_call_or_a_protocol_error(message: bytes) -> None:
    for decode in (decode_call, decode_reply):
        with suppress(VarlinkProtocolError):
            assert decode(message)


@given(
    st.dictionaries(
        st.sampled_from(["method", "parameters", "more", "oneway", "upgrade", "error", "continues"]), _JSON
    ),
    st.integers(0, 200),
    st.integers(0, 255),
)
def test_json_near_a_call_gives_one_or_a_protocol_error(members: dict[str, object], at: int, byte: int) -> None:
    message = json.dumps(members).encode()
    for candidate in (message, message[:at] + bytes([byte]) + message[at + 1 :]):
        for decode in (decode_call, decode_reply):
            with suppress(VarlinkProtocolError):
                assert decode(candidate)


@given(_JSON)
def test_the_depth_is_counted_without_decoding(value: object) -> None:
    def depth(value: object) -> int:
        if isinstance(value, dict):
            value = list(value.values())
        return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0

    for ascii_only in (True, False):
        assert _depth(json.dumps(value, ensure_ascii=ascii_only).encode(errors="replace")) == depth(value)


@given(
    st.dictionaries(st.text(), st.integers(-(2**63), 2**64 - 1) | st.text() | st.lists(st.booleans())), st.booleans()
)
def test_an_encoded_message_is_decoded_to_itself(parameters: dict[str, object], flag: bool) -> None:
    (message,) = Framer().feed(encode_call("a.b.C", parameters, more=flag))
    assert decode_call(message) == Call("a.b.C", parameters, more=flag)
    (message,) = Framer().feed(encode_reply(parameters, continues=flag))
    assert decode_reply(message) == Reply(parameters, continues=flag)
    (message,) = Framer().feed(encode_error("a.b.No", parameters))
    assert decode_reply(message) == Reply(parameters, error="a.b.No")


@given(st.lists(st.binary().map(lambda data: data.replace(b"\0", b"")), max_size=6), st.data())
def test_a_stream_is_cut_the_same_whatever_pieces_it_comes_in(messages: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(message + b"\0" for message in messages) + b"unfinished"
    framer, found, start = Framer(), [], 0
    while start < len(stream):
        size = data.draw(st.integers(1, len(stream) - start))
        found += framer.feed(stream[start : start + size])
        start += size

    assert found == messages
    assert framer.pending_bytes == len(b"unfinished")


@pytest.mark.fault("T85")
def test_a_message_may_be_as_long_as_the_limit_and_no_byte_longer() -> None:
    longest = b"x" * (MESSAGE_LIMIT - 1)
    assert Framer().feed(longest + b"\0") == [longest]
    with pytest.raises(VarlinkProtocolError, match="65536"):
        Framer().feed(longest + b"x\0")
    framer = Framer()
    framer.feed(longest)
    with pytest.raises(VarlinkProtocolError, match="65536"):
        framer.feed(b"x")
    assert framer.pending_bytes < MESSAGE_LIMIT

    envelope = len(encode_reply({"x": ""}))
    assert len(encode_reply({"x": "y" * (MESSAGE_LIMIT - envelope)})) == MESSAGE_LIMIT
    with pytest.raises(VarlinkProtocolError, match="a message of 65537 bytes is to be sent"):
        encode_reply({"x": "y" * (MESSAGE_LIMIT - envelope + 1)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", b"bytes", {1, 2}])
def test_values_that_json_cannot_express_are_not_sent(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        encode_call("a.b.C", {"x": value})


def test_a_parameter_has_exactly_the_type_asked_for() -> None:
    parameters = {"n": 3, "flag": True, "none": None}
    assert required(parameters, "n", int) == 3
    assert required(parameters, "n", float) == 3.0
    assert optional(parameters, "none", str) is None
    assert optional(parameters, "missing", str) is None
    for name, kind in (("flag", int), ("n", str), ("n", bool), ("none", int), ("missing", int)):
        with pytest.raises(VarlinkError) as caught:
            required(parameters, name, kind)
        assert caught.value.error == "org.varlink.service.InvalidParameter"
        assert caught.value.parameters == {"parameter": name}


# The connection. The other end is a thread that plays a service, byte by byte.


@pytest.fixture
def pair(no_descriptor_is_left: None) -> Iterator[tuple[VarlinkConnection, socket.socket]]:
    near, far = socket.socketpair()
    far.settimeout(30)
    with VarlinkConnection(near, accept_fds=2) as connection, far:
        yield connection, far


@pytest.fixture
def no_descriptor_is_left() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


def play(script: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=script)
    thread.start()
    return thread


def pass_fds(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def test_a_call_is_sent_and_its_reply_returned_one_byte_at_a_time(
    pair: tuple[VarlinkConnection, socket.socket],
) -> None:
    connection, far = pair
    received = b""

    def service() -> None:
        nonlocal received
        while not received.endswith(b"\0"):
            received += far.recv(1)
        for byte in b'{"parameters":{"n":2}}\0':
            far.send(bytes([byte]))

    thread = play(service)
    reply = connection.call("a.b.C", {"n": 1}, timeout_s=30)
    thread.join()

    assert received == b'{"method":"a.b.C","parameters":{"n":1}}\0'
    assert reply == Reply({"n": 2})


def test_an_error_reply_is_raised_and_the_connection_goes_on(pair: tuple[VarlinkConnection, socket.socket]) -> None:
    connection, far = pair
    far.send(b'{"error":"a.b.No","parameters":{"why":"x"}}\0{"parameters":{}}\0')

    with pytest.raises(VarlinkError, match=r"a\.b\.No") as caught:
        connection.call("a.b.C", timeout_s=30)
    assert caught.value.parameters == {"why": "x"}
    assert connection.call("a.b.C", timeout_s=30) == Reply()


def test_more_gives_each_reply_until_the_last(pair: tuple[VarlinkConnection, socket.socket]) -> None:
    connection, far = pair
    far.send(b'{"parameters":{"n":1},"continues":true}\0{"parameters":{"n":2},"continues":true}\0{"parameters":{}}\0')

    replies = list(connection.call_more("a.b.C", timeout_s=30))

    assert replies == [Reply({"n": 1}, continues=True), Reply({"n": 2}, continues=True), Reply()]
    assert far.recv(1000) == b'{"method":"a.b.C","parameters":{},"more":true}\0'


def test_a_late_reply_is_not_taken_for_the_next_calls(pair: tuple[VarlinkConnection, socket.socket]) -> None:
    connection, far = pair
    with pytest.raises(TimeoutError, match=r"no reply to a\.b\.Slow"):
        connection.call("a.b.Slow", timeout_s=0.01)
    far.send(b'{"parameters":{"of":"slow"}}\0{"parameters":{"of":"next"}}\0')

    assert connection.call("a.b.Next", timeout_s=30).parameters == {"of": "next"}


def test_unawaited_replies_are_dropped_with_their_descriptors(
    pair: tuple[VarlinkConnection, socket.socket],
) -> None:
    connection, far = pair
    replies = connection.call_more("a.b.Stream", timeout_s=30)
    far.send(b'{"parameters":{"n":1},"continues":true}\0')
    assert next(replies).parameters == {"n": 1}
    pass_fds(far, b'{"parameters":{"n":2},"continues":true}\0', [far.fileno()])
    pass_fds(far, b'{"parameters":{"n":3}}\0', [far.fileno()])
    far.send(b'{"parameters":{"of":"next"}}\0')

    assert connection.call("a.b.Next", timeout_s=30) == Reply({"of": "next"})
    with pytest.raises(RuntimeError, match=r"a\.b\.Stream were dropped"):
        next(replies)


def test_descriptors_come_with_the_reply_they_were_sent_with(pair: tuple[VarlinkConnection, socket.socket]) -> None:
    connection, far = pair
    # All of it is there before the first read, which must not run on into the bytes that carry the descriptors.
    far.send(b'{"parameters":{"n":1},"continues":true}\0')
    pass_fds(far, b'{"parameters":{"n":2}', [far.fileno()])
    pass_fds(far, b',"continues":true}\0', [far.fileno()])
    far.send(b'{"parameters":{"n":3}}\0')

    replies = list(connection.call_more("a.b.C", timeout_s=30))

    assert [len(reply.fds) for reply in replies] == [0, 2, 0]
    for fd in replies[1].fds:
        assert os.fstat(fd).st_ino == os.fstat(far.fileno()).st_ino
        assert not os.get_inheritable(fd)
        os.close(fd)


@pytest.mark.parametrize("pieces", [[3], [1, 2], [2, 1]])
def test_more_descriptors_than_are_accepted_end_the_connection(
    pair: tuple[VarlinkConnection, socket.socket], pieces: list[int]
) -> None:
    connection, far = pair
    for piece in pieces:
        pass_fds(far, b'{"parameters":', [far.fileno()] * piece)

    with pytest.raises(VarlinkProtocolError, match="more than 2 file descriptors"):
        connection.call("a.b.C", timeout_s=30)
    assert connection.fileno() == -1


def test_descriptors_go_with_a_call_and_stay_the_callers(pair: tuple[VarlinkConnection, socket.socket]) -> None:
    connection, far = pair
    far.send(b"{}\0")
    connection.call("a.b.C", timeout_s=30, fds=[connection.fileno()])

    data, fds = receive_part(far, 1)
    assert data == b'{"method":"a.b.C","parameters":{}}\0'
    assert os.fstat(fds[0]).st_ino == os.fstat(connection.fileno()).st_ino
    os.close(fds[0])


def test_a_closed_service_is_a_connection_error_that_names_the_method(
    pair: tuple[VarlinkConnection, socket.socket],
) -> None:
    connection, far = pair
    assert not connection.peer_closed()
    far.send(b'{"half')
    far.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionResetError, match=r"before it answered a\.b\.C"):
        connection.call("a.b.C", timeout_s=30)
    assert connection.peer_closed()
    with pytest.raises(ConnectionAbortedError, match="connect again"):
        connection.call("a.b.C", timeout_s=30)


def test_peer_closed_sees_the_end_and_leaves_what_is_to_be_read(pair: tuple[VarlinkConnection, socket.socket]) -> None:
    connection, far = pair
    far.send(b'{"error":"io.shmserve.TooManyConnections","parameters":{"limit":3}}\0')
    far.close()

    assert connection.peer_closed()
    # The call cannot be sent any more, and what the service said when it closed is the answer.
    with pytest.raises(VarlinkError, match="TooManyConnections"):
        connection.call("a.b.C", timeout_s=30)


def test_an_error_that_answers_no_call_is_the_service_s_farewell(
    pair: tuple[VarlinkConnection, socket.socket],
) -> None:
    connection, far = pair
    assert connection.farewell() is None
    far.send(b'{"error":"a.b.Evicted","parameters":{"message":"why"}}\0')
    far.close()

    for _ in range(2):
        farewell = connection.farewell()
        assert farewell is not None and (farewell.error, farewell.parameters) == ("a.b.Evicted", {"message": "why"})


def test_a_service_that_does_not_speak_varlink_is_told_apart(pair: tuple[VarlinkConnection, socket.socket]) -> None:
    connection, far = pair
    far.send(b"HTTP/1.1 400 Bad Request\r\n\0")

    with pytest.raises(VarlinkProtocolError, match="not JSON"):
        connection.call("a.b.C", timeout_s=30)
    assert connection.fileno() == -1


def test_a_service_that_reads_nothing_is_a_timeout(pair: tuple[VarlinkConnection, socket.socket]) -> None:
    connection, _ = pair
    with pytest.raises(TimeoutError, match="reads no calls"):
        while True:
            connection.call_more("a.b.C", {"x": "y" * 60000}, timeout_s=0)
    assert connection.fileno() == -1


def test_connecting_says_which_socket_it_is_about(tmp_path: Path, no_descriptor_is_left: None) -> None:
    path = tmp_path / "s"
    with pytest.raises(FileNotFoundError, match=str(path)):
        VarlinkConnection.connect(path, 30)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        with pytest.raises(ConnectionRefusedError, match=str(path)):
            VarlinkConnection.connect(path, 30)
        listener.listen(0)
        with VarlinkConnection.connect(path, 30), pytest.raises(TimeoutError, match=str(path)):
            VarlinkConnection.connect(path, 0.05)
    with pytest.raises(OSError, match=rf"is {PATH_LIMIT + 1} bytes long and the kernel takes {PATH_LIMIT}"):
        VarlinkConnection.connect("x" * (PATH_LIMIT + 1), 30)
