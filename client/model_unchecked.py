"""A result that is withheld until its model's contract has been compared with the robot's statement."""

from __future__ import annotations

from typing import Any

from shmserve.errors import ShmServeError


class ModelUnchecked(ShmServeError):
    """The result of a model whose contract has not been compared; callers get the result or a refusal in its place."""

    def __init__(self, result: Any, version: int) -> None:
        super().__init__("the contract of the model that answered has not been compared yet")
        self.result = result
        self.version = version
