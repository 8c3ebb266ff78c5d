"""Reads of the fleet, each in a fixed number of queries, as frozen values. Nothing here writes.

The topics are modules of this package; callers import from here.
"""

from fleet.selectors.progress import (
    LoadState,
    is_anything_moving,
    live_placements,
    load_state,
    polled_neurons,
    refusals_from_rows,
)
from fleet.selectors.serving import (
    LoadFailureView,
    ServedModel,
    ServedNeuron,
    ServedPlacement,
    ServingView,
    Verdict,
    serving_view,
)
from fleet.selectors.snapshot import fleet_policy, fleet_snapshot

__all__ = [
    "LoadFailureView",
    "LoadState",
    "ServedModel",
    "ServedNeuron",
    "ServedPlacement",
    "ServingView",
    "Verdict",
    "fleet_policy",
    "fleet_snapshot",
    "is_anything_moving",
    "live_placements",
    "load_state",
    "polled_neurons",
    "refusals_from_rows",
    "serving_view",
]
