"""Who may use the service's sockets, by the credentials that the kernel has of each connection (SO_PEERCRED)."""

from __future__ import annotations

import os

from ..config.config import Config
from ..varlink.peer import Peer


class AccessPolicy:
    """Looks at the settings each time, because a reload changes them. Root and the daemon's own user are always
    served: nothing in the service could be kept from them.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    def client_refusal(self, peer: Peer) -> str | None:
        """The setting that keeps this peer out of the clients' socket; None: it may attach."""
        uids, gids = self._config.allow_uids, self._config.allow_gids
        if (uids is None and gids is None) or _is_own(peer):
            return None
        if peer.uid in (uids or ()) or not peer.all_groups.isdisjoint(gids or ()):
            return None
        return "allow_uids" if uids is not None else "allow_gids"

    def admin_refusal(self, peer: Peer) -> str | None:
        """The setting that keeps this peer out of the operators' socket; None: it may change the model."""
        uids = self._config.admin_uids
        return None if uids is None or peer.uid in uids or _is_own(peer) else "admin_uids"

    # What the files allow. Where the kernel's word of a peer decides, the file lets everybody ask.

    @property
    def client_socket_mode(self) -> int:
        config = self._config
        # Only descriptors lead to a sealed channel's memory. A named one has a file whose mode must let the client in.
        if config.transport == "sealed" and (config.allow_uids is not None or config.allow_gids is not None):
            return 0o666
        return 0o660 if config.serves_group else 0o600

    @property
    def admin_socket_mode(self) -> int:
        return 0o600 if set(self._config.admin_uids or ()) <= {0, os.getuid()} else 0o666

    @property
    def directory_mode(self) -> int:
        """Of the folder with both sockets: whoever may connect to either may pass through, only the group may look."""
        mode = 0o750 if self._config.serves_group else 0o700
        return mode | 0o011 if 0o666 in (self.client_socket_mode, self.admin_socket_mode) else mode


def _is_own(peer: Peer) -> bool:
    return peer.uid in (0, os.getuid())
