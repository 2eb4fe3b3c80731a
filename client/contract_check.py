"""Compares an observation with what the service's model was declared to take, before anything moves."""

from __future__ import annotations

from typing import Any

from shmserve.contract import Entries, contract_differences, described
from shmserve.errors import ContractMismatch


def check_observation(service: str, model: dict[str, Any], observation: Any) -> None:
    """Raise ContractMismatch listing what is missing, or of another dtype, shape or type.

    A model without an example observation declares nothing, so anything passes. Entries that the model
    does not know are no mismatch: policies ignore them, and robots send more than one policy needs.
    """
    declared: Entries | None = (model.get("contract") or {}).get("observation")
    if declared is None:
        return
    given = {name: entry for name, entry in described(observation).items() if name in declared}
    differences = contract_differences({"observation": declared}, {"observation": given})
    if differences:
        listed = "\n  ".join(differences)
        raise ContractMismatch(
            f"the observation is not what {model.get('name')!r} (version {model.get('version')}), served by {service!r}, "
            f"was declared to take (declared -> given):\n  {listed}\n"
            "Send what it declares, or make the client with check_contract=False if it takes this, too"
        )
