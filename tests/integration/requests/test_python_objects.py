"""Any Python object, where there is no boundary to cross; the type's name, where there is one."""

from __future__ import annotations

import datetime
import decimal
import fractions
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.client import InferenceFailed, ShmClient, UnsupportedType
from tests.support.daemon_process import Daemon
from tests.support.robot_process import Robot
from tests.support.same_trees import assert_same
from tests.support.trees import Colour, Items, Mode, Pair, Pixels, Task

pytestmark = pytest.mark.sealed_too


class Unimportable:
    """A type of this file, which no engine can import."""


_OBJECTS = {
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
    "objects": np.array([{"a": 1}, None], object),
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


#: What a policy sees of each, and what comes back of it, for every user.
_SUBCLASSED: dict[str, tuple[Any, str, Any]] = {
    "ordered": (OrderedDict(b=1, a=2), "builtins.dict", {"b": 1, "a": 2}),
    "default": (defaultdict(list, a=[1]), "builtins.dict", {"a": [1]}),
    "counted": (Counter("aab"), "builtins.dict", {"a": 2, "b": 1}),
    "pair": (Pair(1, "x"), "builtins.tuple", (1, "x")),
    "items": (Items([1, 2]), "builtins.list", [1, 2]),
    "size": (torch.Size([2, 3]), "builtins.tuple", (2, 3)),
    "text": (np.str_("fold"), "builtins.str", "fold"),
    "task": (Task.FOLD, "builtins.str", "fold"),
    "raw": (np.bytes_(b"raw"), "builtins.bytes", b"raw"),
    "mode": (Mode.HOLD, "builtins.int", 3),
    "colour": (Colour.NAMED, "builtins.str", "red"),
    "texts": (np.array(["a", "bc"]), "builtins.list", ["a", "bc"]),
    "pixels": (np.arange(3.0).view(Pixels), "torch.Tensor", np.arange(3.0)),
    "matrix": (np.ones((2, 2)).view(np.matrix), "torch.Tensor", np.ones((2, 2))),
    "parameter": (torch.nn.Parameter(torch.ones(2)), "torch.Tensor", np.ones(2, np.float32)),
    "number without dimensions": (np.array(2.5), "torch.Tensor", np.array(2.5)),
    "keys": ({np.str_("x"): 1}, "builtins.dict", {"x": 1}),
}


@pytest.mark.parametrize("user", ["client", "stranger"])
@pytest.mark.parametrize("beside", [{}, {"object": datetime.date(2026, 11, 22)}], ids=["alone", "beside an object"])
def test_every_user_s_policy_sees_values_of_subclasses_as_their_bases(
    user: str, beside: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    if beside and user == "stranger":
        pytest.skip("a stranger sends no objects")
    robot: ShmClient = request.getfixturevalue(user)
    sent = {name: value for name, (value, _, _) in _SUBCLASSED.items()}
    for _ in range(2):  # the second is known by the first
        types = robot.infer({"do": "types", **sent, **beside})
        found = robot.infer({"do": "echo", "value": {**sent, **beside}})

        assert {name: types[name] for name in sent} == {name: kind for name, (_, kind, _) in _SUBCLASSED.items()}
        assert_same({name: found[name] for name in sent}, {name: base for name, (_, _, base) in _SUBCLASSED.items()})


@pytest.mark.parametrize("user", ["client", "stranger"])
def test_every_user_gets_a_result_of_subclasses_as_their_bases(user: str, request: pytest.FixtureRequest) -> None:
    robot: ShmClient = request.getfixturevalue(user)
    for _ in range(2):
        found = robot.infer({"do": "subclassed"})

        wanted = {
            "ordered": {"tensor": np.arange(3), "deep": [np.float32(1)]},
            "text": "fold",
            "texts": ["left", "right"],
            "pair": (np.zeros(2, np.float32), 1),
            "mode": 3,
            "task": "fold",
            "frame": np.zeros((2, 2), np.uint8),
            "weights": np.ones(2, np.float32),
            "shape": (2, 3),
        }
        assert_same(found, wanted)


@pytest.mark.parametrize("user", ["client", "stranger"])
def test_every_user_gets_an_error_that_names_the_place_of_a_lossy_value(
    user: str, request: pytest.FixtureRequest
) -> None:
    robot: ShmClient = request.getfixturevalue(user)
    masked = np.ma.masked_less([1.0, 2.0], 1.5)

    with pytest.raises(UnsupportedType, match=r"observation\['value'\]\[0\]: .*MaskedArray .*its mask would be lost"):
        robot.infer({"do": "echo", "value": [masked]})
    with pytest.raises(InferenceFailed, match=r"UnsupportedType: action\['depth'\]\[0\]: .*MaskedArray .*its mask"):
        robot.infer({"do": "masked"})
    with pytest.raises(InferenceFailed, match=r"UnsupportedType: action\['circle'\]\[0\]: the list contains itself"):
        robot.infer({"do": "circle"})
    with pytest.raises(InferenceFailed, match=r"UnsupportedType: action\['ghost'\]: a tensor of the meta device"):
        robot.infer({"do": "meta"})
    with pytest.raises(
        UnsupportedType, match=r"observation\['value'\]\[0\]: a list in|\['value'\]\[0\]: the list contains"
    ):
        circle: list[Any] = []
        circle.append(circle)
        robot.infer({"do": "echo", "value": circle})
    assert robot.infer({"do": "echo", "value": 1}) == 1


def test_arrays_sent_with_an_object_arrive_as_tensors_and_come_back_as_arrays(client: ShmClient) -> None:
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


def test_tensors_sent_with_an_object_come_back_as_arrays(client: ShmClient) -> None:
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
        "ordered": "builtins.dict",
        "scalar": "numpy.ndarray",
        "tensor": "numpy.ndarray",
    }


def test_a_result_that_the_client_cannot_unpickle_is_an_error_and_the_next_request_works(client: ShmClient) -> None:
    named = (
        r"cannot unpickle: .*action\['things'\]\[0\]: an object of type policy.NotForClients .*No module named 'policy'"
    )
    with pytest.raises(InferenceFailed, match=named):
        client.infer({"do": "unsupported"})

    assert client.infer({"do": "echo", "value": 1}) == 1


def test_a_result_that_cannot_be_pickled_is_an_error_of_the_model(client: ShmClient) -> None:
    with pytest.raises(
        InferenceFailed, match=r"UnsupportedType: action\['generator'\]: an object of type .*generator cannot"
    ):
        client.infer({"do": "unreadable"})

    assert client.infer({"do": "echo", "value": 1}) == 1


def test_an_object_that_the_engine_cannot_unpickle_is_rejected_and_the_next_request_works(client: ShmClient) -> None:
    named = r"was rejected: observation\['value'\]\[1\]: an object of type .*Unimportable cannot be carried: its class cannot"
    with pytest.raises(UnsupportedType, match=named):
        client.infer({"do": "echo", "value": [1, Unimportable()]})

    assert client.infer({"do": "echo", "value": 1}) == 1


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (decimal.Decimal(1), r"observation\['deep'\]\[1\]: an object of type decimal.Decimal cannot be carried"),
        (Unimportable(), r"observation\['deep'\]\[1\]: an object of type .*Unimportable cannot be carried"),
        ({1, 2}, r"observation\['deep'\]\[1\]: an object of type builtins.set"),
        ({(3,): 4}, r"observation\['deep'\]\[1\]: key \(3,\) is builtins.tuple; the keys of a dict must be str or int"),
        ({1 << 63: 4}, r"observation\['deep'\]\[1\]: the key 9223372036854775808 has more than 64 bits"),
        (
            np.array(["2026-11-22"], "M8[D]"),
            r"observation\['deep'\]\[1\]: an array of dtype datetime64\[D\] cannot be carried; use one of bool, int8",
        ),
        (np.array([object()]), r"observation\['deep'\]\[1\]: an array of dtype object cannot be carried"),
        (np.zeros(2, [("a", "i4")]), r"observation\['deep'\]\[1\]: an array of dtype .*'a'.* cannot be carried"),
        (torch.zeros(2, 2).to_sparse(), r"observation\['deep'\]\[1\]: a tensor of layout torch.sparse_coo"),
        (torch.zeros(2, dtype=torch.float8_e5m2), r"observation\['deep'\]\[1\]: a tensor of torch.float8_e5m2"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_untrusted_client_is_refused_by_place_and_type(stranger: ShmClient, value: Any, named: str) -> None:
    with pytest.raises(UnsupportedType, match=named):
        stranger.infer({"do": "echo", "value": 0, "deep": [1, value]})

    assert stranger.infer({"do": "echo", "value": 1}) == 1


def test_a_container_within_itself_is_refused(stranger: ShmClient) -> None:
    loop: dict[str, Any] = {}
    loop["a"] = [loop]

    with pytest.raises(UnsupportedType, match=r"observation\['a'\]\[0\]: the dict contains itself"):
        stranger.infer(loop)


def test_an_untrusted_client_gets_an_error_that_names_the_unsupported_result(stranger: ShmClient) -> None:
    with pytest.raises(InferenceFailed, match=r"UnsupportedType: action\['things'\]\[0\]: .*policy.NotForClients"):
        stranger.infer({"do": "unsupported"})

    assert stranger.infer({"do": "echo", "value": 1}) == 1


def test_an_untrusted_client_sends_and_gets_everything_except_objects(stranger: ShmClient) -> None:
    sent = {"x": np.arange(3), "t": (1, [2.0, None], "x" * 500), "n": np.float16(2)}

    assert_same(stranger.infer({"do": "echo", "value": sent}), sent)


def test_a_tensor_that_turned_sparse_is_refused_like_any_other(stranger: ShmClient) -> None:
    dense = torch.eye(3)
    stranger.infer({"do": "echo", "value": dense})

    with pytest.raises(UnsupportedType, match=r"layout torch\.sparse_coo"):
        stranger.infer({"do": "echo", "value": dense.to_sparse()})


def test_a_status_reports_the_trusted_clients(
    distrustful: Daemon, obedient: Daemon, stranger: ShmClient, client: ShmClient
) -> None:
    assert [found["trusted"] for found in distrustful.status()["clients"]] == [False]
    assert {found["trusted"] for found in obedient.status()["clients"]} == {True}
