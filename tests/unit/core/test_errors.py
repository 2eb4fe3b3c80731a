"""The errors carry their facts as attributes, in this process and in others."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from shmserve import errors
from shmserve.errors import (
    ClientEvicted,
    ContractMismatch,
    EngineLost,
    ForeignService,
    InferenceFailed,
    ObservationTooLarge,
    ProtocolMismatch,
    RequestTimeout,
    ServiceRestarted,
    ServiceUnavailable,
    ShmServeError,
    SlotsExhausted,
    UnsupportedType,
)

EVERY = sorted(
    (found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, ShmServeError)),
    key=lambda kind: kind.__name__,
)
FACTS: list[ShmServeError] = [
    ServiceUnavailable("x", service="arm", reason="too_many_bytes", needed_bytes=9, limit_bytes=8),
    ClientEvicted("x", service="arm", reason="evicted", retry_after=12.5),
    ServiceRestarted("x", service="arm", request_id=3),
    ForeignService("x", service="arm", path="/run/shmserve", owner_uid=1001),
    ProtocolMismatch("x", service="arm", wire_version=4),
    RequestTimeout("x", service="arm", request_id=3, waited=0.25),
    ObservationTooLarge("x", needed_bytes=9, limit_bytes=8),
    ContractMismatch("x", differences=["a: float32[2] -> float32[3]"], model="m", model_version="7c6b9c"),
    SlotsExhausted("x", service="arm", slots=4),
    InferenceFailed("x", request_id=3, model_error_type="KeyError", model_error_message="'joint'"),
    EngineLost("x", request_id=3, reason="killed by signal 9"),
    UnsupportedType("x", service="arm"),
]


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_error_is_made_of_a_text_alone_and_knows_its_attributes(kind: type[ShmServeError]) -> None:
    error = kind("the text")

    assert str(error) == "the text"
    assert error.args == ("the text",)
    accepted = {
        name
        for base in kind.__mro__
        if issubclass(base, ShmServeError) and "__init__" in vars(base)
        for name, parameter in inspect.signature(base).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert vars(error).keys() == accepted >= {"service", "request_id"}
    assert not any(vars(error).values())


@pytest.mark.parametrize("error", FACTS, ids=lambda error: type(error).__name__)
def test_the_facts_survive_a_copy_and_the_way_to_another_process(error: ShmServeError) -> None:
    for found in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert type(found) is type(error)
        assert str(found) == "x"
        assert vars(found) == vars(error)
        assert any(vars(found).values())


def test_an_unknown_fact_is_a_mistake_of_the_program() -> None:
    with pytest.raises(TypeError):
        ServiceUnavailable("x", colour="red")  # type: ignore[call-arg]


def test_a_builtin_base_catches_an_error_with_facts() -> None:
    with pytest.raises(ConnectionError):
        raise ServiceUnavailable("x", service="arm")
    with pytest.raises(TimeoutError):
        raise RequestTimeout("x", waited=0.1)
    with pytest.raises(TypeError):
        raise UnsupportedType("x", service="arm")


def test_every_error_is_documented_with_its_own_attributes() -> None:
    for kind in EVERY:
        own = vars(kind).get("__init__")
        for name in inspect.signature(own).parameters if own else ():
            if name not in ("self", "args", "facts", "reason") or (name == "reason" and kind is ServiceUnavailable):
                assert f"`{name}`" in str(kind.__doc__), (kind.__name__, name)
