"""A plan being drawn up, and the fleet as it will be once the actions so far are done.

It decides nothing. Each decision is written into the snapshot the next one is made from, so that
memory spent by one rule is spent for the rest, and a victim is gone for all.
"""

from dataclasses import replace
from typing import assert_never

from fleet.planner.actions import Action, Fail, Hold, Load, MarkLost, Refuse, Unload
from fleet.planner.phases import PlacementPhase
from fleet.planner.snapshot import FleetSnapshot, NeuronView, PlacementView, Waiting


class Draft:
    """Owned by one pass."""

    def __init__(self, snapshot: FleetSnapshot) -> None:
        self.snapshot = _in_order(snapshot)
        self.actions: list[Action] = []

    def decide(self, action: Action) -> None:
        """Add an action to the plan and foresee what it does."""
        self.actions.append(action)
        match action:
            case Load(model_id, neuron_id, device_indexes, memory_bytes):
                self.reserve(model_id, neuron_id, device_indexes, memory_bytes)
            case Unload(placement_id):
                self._move(placement_id, self._phase_after_unload(placement_id))
            case Fail(placement_id):
                # Its neuron may still hold memory for it, and go on taking some until told.
                self._move(placement_id, PlacementPhase.UNLOADING)
            case MarkLost(placement_id):
                self._move(placement_id, PlacementPhase.LOST)
            case Hold() | Refuse():
                pass
            case _:
                assert_never(action)

    def reserve(
        self, model_id: str, neuron_id: int, device_indexes: tuple[int, ...], memory_bytes: int
    ) -> None:
        """Keep memory for a model for the rest of the pass."""
        placement = PlacementView(
            id=-1 - len(self.snapshot.placements),  # rows count up from 1: never one of theirs
            model_id=model_id,
            neuron_id=neuron_id,
            device_indexes=device_indexes,
            phase=PlacementPhase.PENDING,
            memory_bytes=memory_bytes,
            phase_since=self.snapshot.now,
        )
        placements = (*self.snapshot.placements, placement)
        self.snapshot = replace(self.snapshot, placements=placements)

    def _phase_after_unload(self, placement_id: int) -> PlacementPhase:
        """What is lost needs no unloading: it has no neuron to give memory back."""
        is_lost = any(
            placement.id == placement_id and placement.phase is PlacementPhase.LOST
            for placement in self.snapshot.placements
        )
        return PlacementPhase.STOPPED if is_lost else PlacementPhase.DRAINING

    def _move(self, placement_id: int, phase: PlacementPhase) -> None:
        placements = tuple(
            replace(placement, phase=phase, phase_since=self.snapshot.now)
            if placement.id == placement_id
            else placement
            for placement in self.snapshot.placements
        )
        self.snapshot = replace(self.snapshot, placements=placements)


def _in_order(snapshot: FleetSnapshot) -> FleetSnapshot:
    """Sort everything, so that the order in which facts were read decides nothing."""
    return replace(
        snapshot,
        neurons=tuple(sorted(map(_devices_in_order, snapshot.neurons), key=_by_name)),
        profiles=tuple(sorted(snapshot.profiles, key=lambda profile: profile.id)),
        placements=tuple(sorted(snapshot.placements, key=lambda placement: placement.id)),
        waiting=tuple(sorted(snapshot.waiting, key=_by_arrival)),
    )


def _devices_in_order(neuron: NeuronView) -> NeuronView:
    return replace(neuron, devices=tuple(sorted(neuron.devices, key=lambda device: device.index)))


def _by_name(neuron: NeuronView) -> tuple[str, int]:
    return neuron.name, neuron.id


def _by_arrival(waiting: Waiting) -> tuple[object, ...]:
    on_neuron_id = -1 if waiting.on_neuron_id is None else waiting.on_neuron_id
    return waiting.since, waiting.model_id, on_neuron_id, waiting.num_waiting
