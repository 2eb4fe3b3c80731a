"""Access policy of the two sockets, by the credentials that the kernel reports for each connection (SO_PEERCRED).

The rules are those of a message bus's policy: user and group ids that the settings allow. File modes are only as open as
the policy needs; where the policy looks at credentials, the file lets every user connect and the refusal is an answer.

The operators' socket has two kinds of peers. Operators (root, the daemon's own user, `admin_uids`) may call every method.
Members of the service's group may look: they may call the methods that change nothing.
"""

from __future__ import annotations

import os

from ..config.config import Config
from ..varlink.peer import Peer


class AccessPolicy:
    """Rules for clients and operators. They are read from the settings for each connection, because a reload changes
    them. Root and the daemon's own user always have access: the service could keep nothing from them.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    def client_refusal(self, peer: Peer) -> str | None:
        """Return the setting that denies this peer the clients' socket, or None."""
        uids, gids = self._config.allow_uids, self._config.allow_gids
        if (uids is None and gids is None) or _is_own(peer):
            return None
        if peer.uid in (uids or ()) or not peer.all_groups.isdisjoint(gids or ()):
            return None
        return "allow_uids" if uids is not None else "allow_gids"

    def admin_refusal(self, peer: Peer) -> str | None:
        """Return the setting that denies this peer the operators' socket, or None for one that may at least look."""
        return None if self.may_operate(peer) or self._may_look(peer) else "admin_uids"

    def may_operate(self, peer: Peer) -> bool:
        """Return whether this peer may change the service, and so run code as the daemon's user."""
        return _is_own(peer) or peer.uid in (self._config.admin_uids or ())

    def _may_look(self, peer: Peer) -> bool:
        # The group of the process, which systemd also gives to the sockets.
        return self._config.serves_group and os.getgid() in peer.all_groups

    # File modes

    @property
    def client_socket_mode(self) -> int:
        config = self._config
        # Only descriptors lead to a sealed channel's memory. A named one has a file whose mode must let the client in.
        if config.transport == "sealed" and (config.allow_uids is not None or config.allow_gids is not None):
            return 0o666
        return 0o660 if config.serves_group else 0o600

    @property
    def admin_socket_mode(self) -> int:
        if not set(self._config.admin_uids or ()) <= {0, os.getuid()}:
            return 0o666
        return 0o660 if self._config.serves_group else 0o600

    @property
    def directory_mode(self) -> int:
        """Mode of the folder with both sockets: a user of either may pass through, only the group may list it."""
        mode = 0o750 if self._config.serves_group else 0o700
        return mode | 0o011 if 0o666 in (self.client_socket_mode, self.admin_socket_mode) else mode


def _is_own(peer: Peer) -> bool:
    return peer.uid in (0, os.getuid())
