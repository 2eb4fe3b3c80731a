"""The N-th call of a function fails, and what is held after many clients: the short forms of `make chaos`."""

from __future__ import annotations

import shutil

import pytest

from chaos.failing_calls import fail_calls
from chaos.growth import attach_and_detach, many_requests
from chaos.service import Service


@pytest.mark.fault("T63", "T67")
@pytest.mark.skipif(shutil.which("cc") is None, reason="the shim is compiled when needed")
@pytest.mark.parametrize("transport", ["named", "sealed"])
@pytest.mark.long
def test_a_failing_call_costs_one_client_an_error_and_no_other(transport: str) -> None:
    with Service(transport, seed=1) as service:
        print(fail_calls(service, 3))


@pytest.mark.fault("T29", "T64")
@pytest.mark.long
def test_many_clients_and_requests_leave_nothing_behind() -> None:
    with Service("named", seed=1) as service:
        print(attach_and_detach(service, 100))
        print(many_requests(service, 2000))
