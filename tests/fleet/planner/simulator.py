"""A fleet that does what plans say, one pass every two seconds, as quickly as a real one could.

Loads become ready and serve who waits, unloads give memory back one step later, and whatever is
busy stays busy. Only healthy neurons do anything.
"""

from dataclasses import replace
from datetime import timedelta
from typing import assert_never

from fleet.planner.actions import Action, Fail, Hold, Load, MarkLost, Refuse, Unload
from fleet.planner.phases import ARRIVING, ENDED, OCCUPYING, NeuronPhase
from fleet.planner.reconcile import plan
from fleet.planner.snapshot import FleetSnapshot, NeuronView, PlacementView, Waiting
from tests.fleet.planner.fleets import P, share_sum, with_true_memory

STEP = timedelta(seconds=2)


class World:
    def __init__(self, snapshot: FleetSnapshot) -> None:
        self.snapshot = snapshot

    def step(self) -> tuple[Action, ...]:
        """Plan, do it, and let two seconds pass. Returns the plan."""
        actions = plan(self.snapshot)
        for action in actions:
            self._apply(action)
        self._pass_time()
        self._check_memory()
        return actions

    def ask(self, model_id: str) -> None:
        waiting = Waiting(model_id, 1, self.snapshot.now)
        self.snapshot = replace(self.snapshot, waiting=(*self.snapshot.waiting, waiting))

    def _apply(self, action: Action) -> None:
        match action:
            case Load():
                self._begin(action)
            case Unload(placement_id, only_if_idle=only_if_idle):
                placement = self._placement(placement_id)
                if placement.phase is P.LOST:
                    self._put(self._moved(placement, P.STOPPED))
                elif placement.idle or not only_if_idle:
                    self._put(self._leaving(placement))
            case Fail(placement_id):
                self._put(self._moved(self._placement(placement_id), P.FAILED))
            case MarkLost(placement_id):
                self._put(self._moved(self._placement(placement_id), P.LOST))
            case Hold() | Refuse():
                pass
            case _:
                assert_never(action)

    def _begin(self, load: Load) -> None:
        placement = PlacementView(
            id=1 + max((p.id for p in self.snapshot.placements), default=0),
            model_id=load.model_id,
            neuron_id=load.neuron_id,
            device_indexes=load.device_indexes,
            phase=P.PENDING,
            memory_bytes=load.memory_bytes,
            phase_since=self.snapshot.now,
        )
        self._replace_placements((*self.snapshot.placements, placement))

    def _leaving(self, placement: PlacementView) -> PlacementView:
        neuron = self._neuron(placement)
        free = [d.free_bytes for d in neuron.devices if d.index in placement.device_indexes]
        leaving = self._moved(placement, P.DRAINING)
        return replace(leaving, in_flight=0, queued=0, free_before_bytes=min(free))

    def _pass_time(self) -> None:
        """The clock first: what happens now is seen at the new time."""
        self.snapshot = replace(self.snapshot, now=self.snapshot.now + STEP)
        self._replace_placements(tuple(map(self._advanced, self.snapshot.placements)))
        rows = self.snapshot.placements
        neurons = (self._polled(neuron, rows) for neuron in self.snapshot.neurons)
        served = {(p.model_id, p.neuron_id) for p in rows if self._has_arrived(p)}
        self.snapshot = replace(
            self.snapshot,
            neurons=tuple(neurons),
            waiting=tuple(w for w in self.snapshot.waiting if not _is_served(w, served)),
        )

    def _advanced(self, placement: PlacementView) -> PlacementView:
        now = self.snapshot.now
        if self._neuron(placement).phase is not NeuronPhase.HEALTHY:
            return placement
        if placement.phase is P.PENDING:
            return self._moved(placement, P.LOADING)
        if placement.phase in ARRIVING:
            return replace(self._moved(placement, P.READY), ready_at=now, last_used_at=now)
        if placement.phase is P.DRAINING and placement.idle:
            return self._moved(placement, P.UNLOADING)
        if placement.phase is P.UNLOADING:
            return self._moved(placement, P.STOPPED)
        return placement

    def _polled(self, neuron: NeuronView, rows: tuple[PlacementView, ...]) -> NeuronView:
        if neuron.phase is not NeuronPhase.HEALTHY:
            return neuron
        true = with_true_memory(neuron, rows)
        devices = (replace(one, observed_at=self.snapshot.now) for one in true.devices)
        return replace(true, devices=tuple(devices))

    def _check_memory(self) -> None:
        for neuron in self.snapshot.neurons:
            for device in neuron.devices:
                rows = [p for p in self.snapshot.placements_on(neuron.id) if p.phase in OCCUPYING]
                assert share_sum(device.index, rows) <= device.total_bytes

    def _has_arrived(self, placement: PlacementView) -> bool:
        is_healthy = self._neuron(placement).phase is NeuronPhase.HEALTHY
        return placement.phase is P.READY and is_healthy

    def _moved(self, placement: PlacementView, phase: P) -> PlacementView:
        return replace(placement, phase=phase, phase_since=self.snapshot.now)

    def _neuron(self, placement: PlacementView) -> NeuronView:
        neuron = self.snapshot.neuron(placement.neuron_id)
        assert neuron is not None
        return neuron

    def _placement(self, placement_id: int) -> PlacementView:
        return next(p for p in self.snapshot.placements if p.id == placement_id)

    def _put(self, changed: PlacementView) -> None:
        rows = self.snapshot.placements
        self._replace_placements(tuple(changed if p.id == changed.id else p for p in rows))

    def _replace_placements(self, rows: tuple[PlacementView, ...]) -> None:
        """Rows that ended are history half a minute later."""
        oldest = self.snapshot.now - timedelta(seconds=30)
        recent = (p for p in rows if p.phase not in ENDED or p.phase_since >= oldest)
        self.snapshot = replace(self.snapshot, placements=tuple(recent))


def _is_served(waiting: Waiting, served: set[tuple[str, int]]) -> bool:
    return any(
        model_id == waiting.model_id and waiting.on_neuron_id in (None, neuron_id)
        for model_id, neuron_id in served
    )
