"""What should be placed and is not: requests that wait, operators' wishes, `min_placements`.

It does not know where there is room, nor what must go: it counts on those rules having spoken.
Whoever waits comes before standing wishes, the longest wait first: a client's time is worth more
than a reserve.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fleet.planner.phases import ARRIVING, NeuronPhase, PlacementPhase
from fleet.planner.snapshot import FleetSnapshot, PlacementView, ProfileView

STAYING = ARRIVING | {PlacementPhase.READY}
"""Serves, or will without anyone doing anything."""


@dataclass(frozen=True, slots=True)
class Want:
    model_id: str
    reason: str
    on_neuron_id: int | None = None
    is_standing: bool = False
    """Wanted for its `min_placements`: nobody waits for it."""


def wants(snapshot: FleetSnapshot) -> Iterator[Want]:
    """Yield what is wanted, most urgent first, whether or not it is already there."""
    num_waiting: dict[tuple[str, int | None], int] = {}
    for waiting in snapshot.waiting:
        key = waiting.model_id, waiting.on_neuron_id
        num_waiting[key] = num_waiting.get(key, 0) + waiting.num_waiting
    for (model_id, on_neuron_id), number in num_waiting.items():
        yield Want(model_id, f"{number} waiting", on_neuron_id)
    by_rank = sorted(snapshot.profiles, key=lambda p: (-p.residency_priority, p.id))
    for profile in by_rank:
        num_kept = num_to_keep(profile)
        for _ in range(num_kept):
            yield Want(profile.id, f"min_placements {num_kept}", is_standing=True)


def is_servable(profile: ProfileView) -> bool:
    return profile.enabled and not profile.quarantined


def num_to_keep(profile: ProfileView) -> int:
    """How many placements are wanted even when nobody waits."""
    if not is_servable(profile):
        return 0
    if profile.max_placements is None:
        return profile.min_placements
    return min(profile.min_placements, profile.max_placements)


def staying_placements(model_id: str, snapshot: FleetSnapshot) -> list[PlacementView]:
    """The model's placements that serve or will, those on a silent neuron included.

    A neuron that misses polls gets the benefit of the doubt until it counts as lost.
    """
    return [p for p in snapshot.placements_of(model_id) if p.phase in STAYING]


def on_healthy_neurons(
    placements: Iterable[PlacementView], snapshot: FleetSnapshot
) -> list[PlacementView]:
    """Those whose neuron answered its last poll."""
    healthy = {n.id for n in snapshot.neurons if n.phase is NeuronPhase.HEALTHY}
    return [placement for placement in placements if placement.neuron_id in healthy]


def is_waited_for(model_id: str, snapshot: FleetSnapshot) -> bool:
    return any(waiting.model_id == model_id for waiting in snapshot.waiting)
