"""Any Python object, where there is no boundary to cross; the type's name, where there is one."""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.client import InferenceFailed, ShmClient, UnsupportedType
from tests.daemon_process import Daemon
from tests.robot_process import Robot
from tests.trees import assert_same


class Unimportable(enum.Enum):
    """A type of this file, which no engine can import."""

    ONE = 1


_OBJECTS = {
    "ordered": OrderedDict(b=1, a=2),
    "decimal": decimal.Decimal("1.10"),
    "fraction": fractions.Fraction(1, 3),
    "date": datetime.datetime(2026, 11, 22, 12, 0, tzinfo=datetime.timezone.utc),
    "set": {1, 2, 3},
    "complex": 1 + 2j,
    "range": range(3, 9, 2),
    "bytearray": bytearray(b"abc"),
    "huge": 1 << 500,
    "surrogate": "half a pair: \ud800",
    "tuple keys": {(1, 2): "x", 3: "y"},
    "dtype": np.dtype("f4"),
    "text array": np.array(["a", "bc"]),
    "structured": np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]),
    "time": np.datetime64("2026-11-22"),
}


@pytest.fixture(scope="module")
def distrustful() -> Iterator[Daemon]:
    daemon = Daemon("obedient", config="trusted_uids = []\n")
    try:
        yield daemon.start()
    finally:
        daemon.dismiss()


@pytest.fixture
def stranger(distrustful: Daemon) -> Iterator[ShmClient]:
    with distrustful.client() as client:
        yield client


@pytest.mark.parametrize("name", _OBJECTS)
def test_an_object_of_the_same_user_comes_back_equal(client: ShmClient, name: str) -> None:
    sent = _OBJECTS[name]

    found = client.infer({"do": "echo", "value": sent})

    assert type(found) is type(sent)
    assert np.array_equal(found, sent) if isinstance(sent, np.ndarray) else found == sent


def test_arrays_beside_an_object_arrive_as_tensors_and_come_back_as_arrays(client: ShmClient) -> None:
    arrays = {
        "flat": np.arange(5, dtype=np.float32),
        "scalar array": np.array(2.5),
        "big-endian": np.arange(3, dtype=">i4"),
        "Fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "backwards": np.arange(4)[::-1],
        "empty": np.zeros((0, 3)),
        "read-only": np.broadcast_to(np.float64(1.0), (2, 2)),
        "large": np.arange(100_000),
    }
    date = datetime.date(2026, 11, 22)

    types = client.infer({"do": "types", "date": date, **arrays})
    found = client.infer({"do": "echo", "value": {"date": date, **arrays}})

    assert {types[name] for name in arrays} == {"torch.Tensor"}
    assert types["date"] == "datetime.date"
    assert found.pop("date") == date
    assert_same(found, arrays)


def test_tensors_beside_an_object_come_back_as_arrays(client: ShmClient) -> None:
    value = {"date": datetime.date(2026, 11, 22), "t": torch.arange(4.0).reshape(2, 2).T}

    found = client.infer({"do": "echo", "value": value})

    assert type(found["t"]) is np.ndarray and found["t"].flags.writeable
    assert found["t"].dtype == np.float32 and found["t"].tolist() == [[0.0, 2.0], [1.0, 3.0]]


def test_a_client_without_torch_reads_a_result_of_tensors_and_objects(
    obedient: Daemon, start_robot: Callable[..., Robot]
) -> None:
    found = start_robot("imports", obedient).finish()

    assert "torch" not in found["modules"]
    assert found["kinds"] == {
        "date": "datetime.date",
        "half": "numpy.ndarray",
        "ordered": "collections.OrderedDict",
        "scalar": "numpy.ndarray",
        "tensor": "numpy.ndarray",
    }


def test_a_result_that_the_client_cannot_unpickle_is_an_error_and_the_next_request_works(client: ShmClient) -> None:
    with pytest.raises(InferenceFailed, match="No module named 'policy'"):
        client.infer({"do": "unsupported"})

    assert client.infer({"do": "echo", "value": 1}) == 1


def test_a_result_that_cannot_be_pickled_is_an_error_of_the_model(client: ShmClient) -> None:
    with pytest.raises(InferenceFailed, match=r"UnsupportedType: action cannot be pickled.*generator"):
        client.infer({"do": "unreadable"})

    assert client.infer({"do": "echo", "value": 1}) == 1


def test_an_object_that_the_engine_cannot_unpickle_is_rejected_and_the_next_request_works(client: ShmClient) -> None:
    with pytest.raises(ValueError, match=r"was rejected: .*Unimportable|was rejected: .*No module named"):
        client.infer({"do": "echo", "value": Unimportable.ONE})

    assert client.infer({"do": "echo", "value": 1}) == 1


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (decimal.Decimal(1), r"observation\['deep'\]\[1\]: an object of type decimal.Decimal cannot be carried"),
        (Unimportable.ONE, r"observation\['deep'\]\[1\]: an object of type .*Unimportable cannot be carried"),
        ({1, 2}, r"observation\['deep'\]\[1\]: an object of type builtins.set"),
        ({3: 4}, r"observation\['deep'\]\[1\]: key 3 is builtins.int; the keys of a dict must be str"),
        (
            np.array(["a"]),
            r"observation\['deep'\]\[1\]: an array of dtype <U1 cannot be carried; use one of bool, int8",
        ),
        (np.array([object()]), r"observation\['deep'\]\[1\]: an array of dtype object cannot be carried"),
        (np.zeros(2, [("a", "i4")]), r"observation\['deep'\]\[1\]: an array of dtype .*'a'.* cannot be carried"),
        (torch.zeros(2, 2).to_sparse(), r"observation\['deep'\]\[1\]: a tensor of layout torch.sparse_coo"),
        (torch.zeros(2, dtype=torch.float8_e5m2), r"observation\['deep'\]\[1\]: a tensor of torch.float8_e5m2"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_stranger_cannot_send_is_refused_by_place_and_type(stranger: ShmClient, value: Any, named: str) -> None:
    with pytest.raises(UnsupportedType, match=named):
        stranger.infer({"do": "echo", "value": 0, "deep": [1, value]})

    assert stranger.infer({"do": "echo", "value": 1}) == 1


def test_a_container_within_itself_is_refused(stranger: ShmClient) -> None:
    loop: dict[str, Any] = {}
    loop["a"] = [loop]

    with pytest.raises(UnsupportedType, match=r"observation\['a'\]\[0\]: the dict contains itself"):
        stranger.infer(loop)


def test_a_stranger_is_told_what_the_model_returned_that_cannot_be_carried(stranger: ShmClient) -> None:
    with pytest.raises(InferenceFailed, match=r"UnsupportedType: action\['things'\]\[0\]: .*policy.NotForClients"):
        stranger.infer({"do": "unsupported"})

    assert stranger.infer({"do": "echo", "value": 1}) == 1


def test_a_stranger_sends_and_gets_everything_that_is_not_an_object(stranger: ShmClient) -> None:
    sent = {"x": np.arange(3), "t": (1, [2.0, None], "x" * 500), "n": np.float16(2)}

    assert_same(stranger.infer({"do": "echo", "value": sent}), sent)


def test_a_tensor_that_turned_sparse_is_refused_like_any_other(stranger: ShmClient) -> None:
    dense = torch.eye(3)
    stranger.infer({"do": "echo", "value": dense})

    with pytest.raises(UnsupportedType, match=r"layout torch\.sparse_coo"):
        stranger.infer({"do": "echo", "value": dense.to_sparse()})


def test_status_tells_who_is_trusted(
    distrustful: Daemon, obedient: Daemon, stranger: ShmClient, client: ShmClient
) -> None:
    assert [found["trusted"] for found in distrustful.status()["clients"]] == [False]
    assert {found["trusted"] for found in obedient.status()["clients"]} == {True}
