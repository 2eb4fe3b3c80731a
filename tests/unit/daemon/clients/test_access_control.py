"""Access policy: who may operate a service, who may look at it, and what the files' modes are for that."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from shmserve.daemon.api.admin import LOOKING, AdminService
from shmserve.daemon.clients.access_control import AccessPolicy
from shmserve.daemon.config.config import Config
from shmserve.daemon.varlink.peer import Peer

OWN_GROUP = os.getgid()
STRANGER = 61_234


def policy(**settings: Any) -> AccessPolicy:
    return AccessPolicy(Config(Path("/r"), Path("/s"), **settings))


def peer(uid: int = STRANGER, *groups: int) -> Peer:
    return Peer(1, uid, uid, frozenset(groups))


@pytest.mark.parametrize(
    ("settings", "caller", "refusal", "operates"),
    [
        ({}, peer(0), None, True),
        ({}, peer(os.getuid()), None, True),
        ({}, peer(STRANGER), "admin_uids", False),
        ({}, peer(STRANGER, OWN_GROUP), "admin_uids", False),  # the service does not serve its group
        ({"group_clients": True}, peer(STRANGER, OWN_GROUP), None, False),
        ({"group_clients": True}, Peer(1, STRANGER, OWN_GROUP, frozenset()), None, False),
        ({"group_clients": True}, peer(STRANGER, OWN_GROUP + 1), "admin_uids", False),
        ({"admin_uids": (STRANGER,)}, peer(STRANGER), None, True),
        ({"admin_uids": (STRANGER,)}, peer(STRANGER + 1), "admin_uids", False),
        ({"admin_uids": (STRANGER,), "group_clients": True}, peer(STRANGER + 1, OWN_GROUP), None, False),
        ({"admin_uids": ()}, peer(0), None, True),
    ],
)
def test_the_credentials_decide_who_operates_and_who_looks(
    settings: dict[str, Any], caller: Peer, refusal: str | None, operates: bool
) -> None:
    found = policy(**settings)

    assert (found.admin_refusal(caller), found.may_operate(caller)) == (refusal, operates)


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({}, 0o600),
        ({"group_clients": True}, 0o660),
        ({"admin_uids": (0,)}, 0o600),
        ({"admin_uids": (STRANGER,)}, 0o666),
        ({"admin_uids": (STRANGER,), "group_clients": True}, 0o666),
    ],
)
def test_the_mode_of_the_admin_socket_lets_in_whom_the_policy_serves(settings: dict[str, Any], mode: int) -> None:
    assert policy(**settings).admin_socket_mode == mode


def test_the_methods_for_lookers_are_methods_and_the_description_names_them() -> None:
    nothing: Any = None  # no method is called
    supervisor: Any = _Supervisor()
    interface = AdminService(supervisor, nothing, nothing, nothing, nothing).interface()

    assert interface.methods.keys() >= LOOKING
    introduction = interface.description.partition("interface ")[0].replace("\n# ", " ")
    named, _, _ = introduction.partition(", and see")
    assert {name for name in interface.methods if name in named.replace(",", " ").split()} == LOOKING
    refused = {name for name in interface.methods if interface.refusal(peer(), name) is not None}
    assert refused == interface.methods.keys() - LOOKING
    assert not any(interface.refusal(peer(0), name) for name in interface.methods)


class _Supervisor:
    config = None
    reloaded = None
    access_policy = policy(group_clients=True)
