"""List of the benchmarks of this folder, by the name of their files."""

from __future__ import annotations

from collections.abc import Callable

from . import (
    batching,
    c_client,
    changing_timestamp,
    control_thread,
    engine_deaths,
    fairness,
    idle_clients,
    idle_cpu,
    kernel_entries,
    one_beside_eight,
    slots_in_turn,
    start_up,
    update_pause,
    update_time,
    ways_of_asking,
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
        update_time,
        engine_deaths,
        ways_of_asking,
        c_client,
    )
}
