"""Holds a policy up inside a request until the test lets it go on; no test has to guess how long something takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.daemon_process import wait_until


class Gate:
    """Two files: the policy makes the one when it is inside, the test the other to let it out."""

    def __init__(self, path: Path) -> None:
        #: What the observation, or the settings of a policy, name.
        self.path = path

    @property
    def observation(self) -> dict[str, Any]:
        """What to ask the obedient policy."""
        return {"do": "wait", "gate": str(self.path)}

    def wait_entered(self) -> None:
        """Until the policy runs the request."""
        wait_until("the policy is inside the gate", self.is_entered)

    def is_entered(self) -> bool:
        """Whether the policy runs the request."""
        return self.path.with_suffix(".entered").exists()

    def open(self) -> None:
        self.path.touch()
