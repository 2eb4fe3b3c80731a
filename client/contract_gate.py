"""Gate of a client's contract: which requests may be sent to a model, and which results may be given.

The first observation of each structure is compared with what the model was declared to take. A robot's own statement
(`ShmClient(robot=...)`) is compared with every model whose results the robot would get: before a request is sent, and
again when a reply names another version, because an update may come between the two. Such a result is withheld until then.
"""

from __future__ import annotations

import functools
import time
from typing import Any

from shmserve.codec import Encoder
from shmserve.errors import ContractMismatch, ServiceRestarted, ServiceUnavailable, ShmServeError
from shmserve.robot_contract import RobotContract, versions_of

from .client_guard import ClientGuard, ParkingLot
from .connection import Connection
from .connector import ConnectionUser, Connector
from .contract_check import check_structure
from .fast_path import FastPath
from .model_unchecked import ModelUnchecked
from .pending import Pending
from .request_options import NOT_CONNECTED
from .request_table import RequestTable

#: A daemon is asked for its model no more often.
_REFRESH_NS = 100_000_000
#: How long it may take until it describes the model that answered: no less, whatever the request has left; no more; and the
#: pause between two attempts.
_LEAST_NS, _LONGEST_NS, _PAUSE_NS = 100_000_000, 1_000_000_000, 5_000_000


def _versions_of(model: dict[str, Any]) -> set[int]:
    return {int(version, 16) for version in versions_of(model)}


def forget_old_model(connection: Connection) -> bool:
    """Forget a description that is not of just now, so that it is fetched again; return whether it was forgotten."""
    if time.monotonic_ns() - connection.asked_ns <= _REFRESH_NS:
        return False
    connection.forget_model()
    return True


class ContractGate:
    """Owner of the model that requests are compared with."""

    def __init__(
        self,
        guard: ClientGuard,
        connector: Connector,
        table: RequestTable,
        fast_path: FastPath,
        encoder: Encoder,
        parking_lot: ParkingLot,
        *,
        check_contract: bool,
        robot: RobotContract | None,
    ) -> None:
        self._guard = guard
        self._connector = connector
        self._table = table
        self._fast_path = fast_path
        self._encoder = encoder
        self._parking_lot = parking_lot
        self._check_contract = check_contract
        self._robot = robot
        self._compares = check_contract or robot is not None
        self._admitted: dict[str, Any] | None = None
        #: Versions that agree with the robot, on this connection.
        table.accepted = None if robot is None else set()

    @property
    def robot(self) -> RobotContract | None:
        """The robot's statement."""
        return self._robot

    def state_rate(self, steps_hz: float | None) -> None:
        """Compare the rate of the robot's steps, too, with every model that states one; None: no longer.

        Raises InvalidArgument if the robot's statement has another rate.
        """
        with self._guard.lock:
            self._robot = (self._robot or RobotContract({})).at_rate(steps_hz)
            self._compares = True
            self._table.accepted = set()
            self._admitted = None
            self._fast_path.deoptimize()

    def admit(self, connection: Connection) -> int:
        """Return 0 if a request may be sent, or NOT_CONNECTED if the model must be asked for; called under the lock.

        Raises ContractMismatch if the robot's statement differs from the model's.
        """
        model = connection.model
        if not self._compares or (model is not None and model is self._admitted):
            return 0
        self._encoder.examine = None  # it may know an earlier model
        if model is None:
            # It may still be loading; the first request of a structure is compared once there is a model.
            return NOT_CONNECTED if time.monotonic_ns() - connection.asked_ns > _REFRESH_NS else 0
        if self._robot is not None:
            try:
                self._accept(self._robot, model)
            except ContractMismatch:
                if forget_old_model(connection):  # it may have been updated since
                    return NOT_CONNECTED
                raise
        if self._check_contract:
            self._encoder.forget()
            self._encoder.examine = functools.partial(check_structure, self._guard.name, connection)
        self._admitted = model
        return 0

    def is_admitted(self, connection: Connection) -> bool:
        """Return whether the connection's model has been compared, or needs no comparison."""
        return not self._compares or (connection.model is not None and connection.model is self._admitted)

    def _accept(self, robot: RobotContract, model: dict[str, Any]) -> None:
        robot.check(self._guard.name, model)
        assert self._table.accepted is not None
        self._table.accepted |= _versions_of(model)

    def settle(self, pending: Pending, unchecked: ModelUnchecked, user: ConnectionUser) -> None:
        """Give `pending` the result that is withheld, or the reason why not; asks the daemon, not under the lock.

        Raises what says nothing of the model, such as ReentrantCall; then the result stays withheld.
        """
        now_ns = time.monotonic_ns()
        until_ns = max(now_ns + _LEAST_NS, min(pending.deadline_ns, now_ns + _LONGEST_NS))
        refusal = self._refusal_of(unchecked.version, until_ns, user)
        with self._guard.lock:
            self._table.settle(pending, unchecked, refusal)

    def _refusal_of(self, version: int, until_ns: int, user: ConnectionUser) -> ShmServeError | None:
        robot, accepted = self._robot, self._table.accepted
        assert robot is not None and accepted is not None
        try:
            while version not in accepted:
                model = self._connector.refresh_model_info(until_ns, user)
                with self._guard.lock:
                    self._fast_path.deoptimize()  # the next request is compared with this description
                    if model is not None and version in _versions_of(model):
                        self._accept(robot, model)
                        return None
                if time.monotonic_ns() >= until_ns:
                    return self._served_no_more(version)
                # The engine begins to serve a moment before the daemon describes its model.
                self._parking_lot.park(time.monotonic_ns() + _PAUSE_NS)
        except ServiceUnavailable as error:
            return ServiceRestarted(
                f"the contract of model {version:016x}, which answered, could not be compared with robot=, so its action is "
                f"discarded: {error}",
                service=self._guard.name,
            )
        except ContractMismatch as refusal:
            return refusal
        return None

    def _served_no_more(self, version: int) -> ContractMismatch:
        return ContractMismatch(
            f"model {version:016x} of {self._guard.name!r} answered, and is served no more: its contract cannot be compared "
            "with robot=, and its action is discarded; send the request again",
            model_version=f"{version:016x}",
            service=self._guard.name,
        )
