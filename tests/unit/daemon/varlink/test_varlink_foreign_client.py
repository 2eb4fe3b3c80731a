"""A foreign client of the varlink server: asyncvarlink, which shares no code with this package."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from shmserve.daemon.varlink.connection import ConnectionLimits
from tests.support.varlink_service import (
    DESCRIPTION,
    Service,
    memory_files,
)


def test_a_foreign_client_gets_replies_errors_progress_and_descriptions(tmp_path: Path) -> None:
    asyncvarlink = pytest.importorskip("asyncvarlink", reason="it needs Python 3.11")
    from asyncvarlink.serviceerrors import ExpectedMore, InterfaceNotFound, InvalidParameter
    from asyncvarlink.serviceinterface import VarlinkServiceInterface

    def call(name: str, parameters: dict[str, Any], **flags: bool) -> Any:
        return asyncvarlink.VarlinkMethodCall(f"org.example.Test.{name}", parameters, **flags)

    async def drive(path: str) -> None:
        transport, protocol = await asyncvarlink.connect_unix_varlink(asyncvarlink.VarlinkClientProtocol, path)
        try:
            about = protocol.make_proxy(VarlinkServiceInterface)
            info = await about.GetInfo()
            assert info["vendor"] == "v"
            assert info["interfaces"] == ["org.varlink.service", "io.shmserve", "org.example.Test"]
            for name in info["interfaces"]:
                text = (await about.GetInterfaceDescription(interface=name))["description"]
                assert f"interface {name}\n" in text
            assert text == DESCRIPTION
            with pytest.raises(InterfaceNotFound):
                await about.GetInterfaceDescription(interface="org.example.Nothing")

            echoes = await asyncio.gather(*(protocol.call(call("Echo", {"text": f"slow {n}"})) for n in range(5)))
            assert [reply.parameters["text"] for reply, _ in echoes] == [f"slow {n}" for n in range(5)]
            for name, parameters, error in (
                ("Echo", {"text": 7}, InvalidParameter.name),
                ("Count", {"to": 1}, ExpectedMore.name),
                ("Missing", {}, "org.varlink.service.MethodNotImplemented"),
                ("Fail", {"how": "typed"}, "org.example.Test.Refused"),
            ):
                reply, _ = await protocol.call(call(name, parameters))
                assert reply.error == error
            assert await protocol.call(call("Echo", {"text": "x"}, oneway=True)) is None

            counted = [
                (reply.continues, reply.parameters, reply.error)
                async for reply, _ in protocol.call_more(call("Count", {"to": 2, "fail": "typed"}, more=True))
            ]
            assert counted[:2] == [(True, {"n": 0}, None), (True, {"n": 1}, None)]
            assert counted[2] == (False, {"why": "asked to"}, "org.example.Test.Refused")

            with memory_files(11, 22) as fds:
                reply, _ = await protocol.call(call("TakeFds", {}), fds)
                assert reply.parameters == {"sizes": [11, 22]}
            done = asyncio.get_running_loop().create_future()
            _, received = await protocol.call(call("GiveFd", {"size": 1}), replyfdsdone=done)
            assert len(received) == 1
            done.set_result(None)
        finally:
            transport.close()
            await transport.closed_future

    with Service(tmp_path, ConnectionLimits(accept_fds=2)) as service:
        asyncio.run(drive(service.path))


def test_a_foreign_client_that_may_not_use_the_socket_learns_it_from_its_first_call(tmp_path: Path) -> None:
    asyncvarlink = pytest.importorskip("asyncvarlink", reason="it needs Python 3.11")

    async def drive(path: str) -> str:
        transport, protocol = await asyncvarlink.connect_unix_varlink(asyncvarlink.VarlinkClientProtocol, path)
        try:
            reply, _ = await protocol.call(asyncvarlink.VarlinkMethodCall("org.varlink.service.GetInfo", {}))
            return str(reply.error)
        finally:
            transport.close()
            await transport.closed_future

    with Service(tmp_path, refusal=lambda peer: "allow_uids") as service:
        assert asyncio.run(drive(service.path)) == "org.varlink.service.PermissionDenied"
