"""Compares an observation with what the service's model was declared to take, before anything moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from shmserve.base_values import plain_tree
from shmserve.contract import Entries, Entry, contract_differences, describe_tree
from shmserve.errors import ContractMismatch

#: Kinds of number that a declared kind accepts: every int is a float as well, and a bool is not a number.
_TAKES = {"bool": ("bool",), "int": ("int",), "float": ("float", "int")}
_DTYPES = (("bool", "bool"), ("int", "int"), ("uint", "int"), ("float", "float"), ("bfloat", "float"))


class _Attached(Protocol):
    """The part of a connection that the check of a contract reads."""

    model: dict[str, Any] | None


def check_structure(service: str, attached: _Attached, observation: Any) -> None:
    """As `check_observation`, once there is a model."""
    if attached.model is not None:
        check_observation(service, attached.model, observation)


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
        name: declared[name] if _is_number_for(declared[name], entry) else entry
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
