"""Compares an observation with what the service's model was declared to take, before anything moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from shmserve.base_values import plain_tree
from shmserve.contract import (
    Entries,
    Entry,
    contract_differences,
    describe_tree,
    is_within,
    lengths_of,
    name_within,
    shape_of,
)
from shmserve.contract_meaning import FREE
from shmserve.errors import ContractMismatch
from shmserve.metadata import int64

#: Kinds of number that a declared kind accepts: every int is a float as well, and a bool is not a number.
_TAKES = {"bool": ("bool",), "int": ("int",), "float": ("float", "int")}
_DTYPES = (("bool", "bool"), ("int", "int"), ("uint", "int"), ("float", "float"), ("bfloat", "float"))


class _Attached(Protocol):
    """The part of a connection that the check of a contract reads."""

    model: dict[str, Any] | None


def check_structure(service: str, attached: _Attached, observation: Any) -> tuple[int, ...] | None:
    """As `check_observation`, once there is a model; return for each size of the observation the declared one, or -1.

    While the sizes are these, an observation of the same structure needs no other check.
    """
    if attached.model is None:
        return None
    check_observation(service, attached.model, observation)
    declared: Entries | None = (attached.model.get("contract") or {}).get("observation")
    return None if declared is None else declared_sizes(attached.model, declared, observation)


def declared_sizes(model: Mapping[str, Any], declared: Entries, observation: Any) -> tuple[int, ...]:
    """Return for each size of an observation, in the order of its leaves, its own length if the contract fixes it, or -1.

    >>> import numpy as np
    >>> declared = {"points": {"dtype": "float32", "shape": [-1, 3]}, "names": {"type": "list[str]", "length": 2}}
    >>> declared_sizes({}, declared, {"points": np.zeros((5, 3)), "names": ["a", "bc"], "extra": [1.0], "step": 7})
    (-1, 3, -1, -1, -1)
    """
    sizes: list[int] = []

    def walk(value: Any, name: str | None) -> None:
        kind = type(value)
        if kind in (dict, list, tuple) and not (kind is list and _is_list_leaf(value)):
            for key, entry in value.items() if kind is dict else enumerate(value):
                walk(entry, None if name is None else name_within(name, key))
            return
        lengths = [len(value)] if kind in (list, str, bytes) else list(shape_of(value))
        if name in declared and kind not in (str, bytes):
            # As many: the observation has passed the comparison.
            fixed = lengths_of(declared[name])
            lengths = [FREE if length == FREE else given for length, given in zip(fixed, lengths, strict=True)]
        else:
            lengths = [FREE] * len(lengths)
        sizes.extend(lengths)

    observation = plain_tree(observation, "observation")
    if (model.get("metadata") or {}).get("style") == "gr00t" and _is_call(observation):
        for key, entry in observation.items():
            if key == "data":
                for inner, value in entry.items():
                    walk(value, "" if inner == "observation" else None)
            else:
                walk(entry, None)
    else:
        walk(observation, "")
    return tuple(sizes)


def _is_list_leaf(values: list[Any]) -> bool:
    """Whether this list of numbers travels as one leaf."""
    kinds = set(map(type, values))
    if len(kinds) != 1:
        return False
    (kind,) = kinds
    return kind in (bool, float) or (kind is int and min(values) in int64 and max(values) in int64)


def check_observation(service: str, model: dict[str, Any], observation: Any) -> None:
    """Raise ContractMismatch listing what is missing, or of another dtype, shape or type.

    A model without an example observation declares nothing, so anything passes. Entries that the model
    does not know are ignored: policies ignore them, and robots send more than one policy needs. A
    declared number takes any number of its kind: Python's own, numpy's, or an array without dimensions.
    """
    declared: Entries | None = (model.get("contract") or {}).get("observation")
    if declared is None:
        return
    observation = plain_tree(observation, "observation")
    if (model.get("metadata") or {}).get("style") == "gr00t" and _is_call(observation):
        if "observation" not in observation["data"]:
            return
        observation = observation["data"]["observation"]
    given = {
        name: declared[name] if is_within(entry, declared[name]) or _is_number_for(declared[name], entry) else entry
        for name, entry in describe_tree(observation).items()
        if name in declared
    }
    differences = contract_differences({"observation": declared}, {"observation": given})
    if differences:
        listed = "\n  ".join(differences)
        raise ContractMismatch(
            f"the observation is not what {model.get('name')!r} (version {model.get('version')}), served by {service!r}, "
            f"was declared to take (declared -> given):\n  {listed}\n"
            "Send what it declares, or make the client with check_contract=False if it takes this, too",
            differences=differences,
            model=model.get("name"),
            model_version=model.get("version"),
            service=service,
        )


def _is_call(observation: Any) -> bool:
    """Whether this is GR00T's request for one of its endpoints, which may have an observation inside."""
    return (
        type(observation) is dict and observation.keys() == {"endpoint", "data"} and type(observation["data"]) is dict
    )


def _is_number_for(declared: Entry, given: Entry) -> bool:
    """Whether both are single numbers, and the declared one takes the other's kind.

    >>> _is_number_for({"type": "float"}, {"dtype": "int64", "shape": []}), _is_number_for({"type": "int"}, {"type": "str"})
    (True, False)
    """
    return _number_kind(given) in _TAKES.get(_number_kind(declared), ())


def _number_kind(entry: Mapping[str, Any]) -> str:
    """Return bool, int or float for a single number of any type, else ""."""
    if "dtype" not in entry:
        return str(entry["type"]) if entry["type"] in _TAKES else ""
    if entry["shape"]:
        return ""
    return next((kind for prefix, kind in _DTYPES if str(entry["dtype"]).startswith(prefix)), "")
