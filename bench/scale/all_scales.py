"""List of the benchmarks of this folder, by the name of their files."""

from __future__ import annotations

from collections.abc import Callable

from . import (
    batching,
    changing_timestamp,
    control_thread,
    fairness,
    idle_clients,
    idle_cpu,
    kernel_entries,
    one_beside_eight,
    slots_in_turn,
    start_up,
    update_pause,
)
from .figure import Figure

#: Title, and the function that measures it for n seconds of each way.
SCALES: dict[str, tuple[str, Callable[[float], list[Figure]]]] = {
    module.__name__.rpartition(".")[2]: (module.TITLE, module.measure)
    for module in (
        idle_clients,
        fairness,
        one_beside_eight,
        batching,
        changing_timestamp,
        slots_in_turn,
        kernel_entries,
        control_thread,
        idle_cpu,
        start_up,
        update_pause,
    )
}
