"""Fleets to plan for: short builders for literal ones, strategies for generated ones.

Sizes are small whole numbers, called bytes, so that a failing example can be read.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from fleet.planner.phases import ENDED, LIVE, OCCUPYING, NeuronPhase, PlacementPhase
from fleet.planner.snapshot import (
    Cooldown,
    DeviceView,
    EvictionStrategy,
    FleetSnapshot,
    NeuronView,
    PlacementView,
    Policy,
    ProfileView,
    Waiting,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
P = PlacementPhase
Item = TypeVar("Item")


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def device(index: int = 0, total: int = 24, free: int | None = None, **facts: Any) -> DeviceView:
    facts = {"observed_at": NOW, **facts}
    return DeviceView(index, total, total if free is None else free, **facts)


def neuron(id: int = 1, *devices: DeviceView, **facts: Any) -> NeuronView:
    facts = {"name": f"n{id}", "phase": NeuronPhase.HEALTHY, **facts}
    return NeuronView(id=id, devices=devices or (device(),), **facts)


def placed(
    id: int,
    model_id: str,
    num_bytes: int = 10,
    *,
    on: int = 1,
    devices: tuple[int, ...] = (0,),
    phase: PlacementPhase = P.READY,
    used: float = 60,
    since: float = 600,
    **facts: Any,
) -> PlacementView:
    """A placement in this phase for `since` seconds and last used `used` seconds ago."""
    facts = {
        "last_used_at": ago(used),
        "ready_at": ago(since) if phase is P.READY else None,
        "phase_since": ago(since),
        **facts,
    }
    return PlacementView(id, model_id, on, devices, phase, num_bytes, **facts)


def model(id: str, num_bytes: int | None = 10, **facts: Any) -> ProfileView:
    return ProfileView(id, **{"declared_bytes": num_bytes, **facts})


def waits(model_id: str, since: float = 1, on: int | None = None) -> Waiting:
    return Waiting(model_id, 1, ago(since), on)


def fleet(
    neurons: Sequence[NeuronView] = (),
    profiles: Sequence[ProfileView] = (),
    placements: Sequence[PlacementView] = (),
    waiting: Sequence[Waiting] = (),
    **policy: Any,
) -> FleetSnapshot:
    return FleetSnapshot(
        NOW,
        tuple(neurons),
        tuple(profiles),
        tuple(placements),
        tuple(waiting),
        Policy(**policy),
    )


MODEL_IDS = ("a", "b", "c", "d", "not-in-catalogue")
NEURON_IDS = (1, 2, 3)

LAW = settings(
    max_examples=min(40, settings().max_examples),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
"""Generated fleets are large: fewer of them, and no clock."""

moments = st.integers(0, 400).map(ago)
SELDOM = st.integers(0, 9).map(lambda number: number == 7)
NEVER = st.just(False)


@st.composite
def profiles(draw: st.DrawFn, model_id: str, is_calm: bool) -> ProfileView:
    """A calm one has a known size and nothing against it."""
    seldom = NEVER if is_calm else SELDOM
    sizes = st.integers(8, 20) if is_calm else st.none() | st.integers(0, 26)
    until = st.integers(-60, 60).map(lambda seconds: NOW + timedelta(seconds=seconds))
    cooldowns = st.builds(Cooldown, st.sampled_from(NEURON_IDS), until)
    return ProfileView(
        id=model_id,
        enabled=not draw(seldom),
        quarantined=draw(seldom),
        harness="openai" if draw(seldom) else "torch",
        learned_bytes=draw(sizes),
        declared_bytes=draw(sizes),
        estimated_bytes=draw(sizes),
        min_devices=draw(st.sampled_from((1, 1, 2, 3) if not is_calm else (1, 1, 1, 2))),
        min_device_bytes=16 if draw(seldom) else 0,
        pinned_on=frozenset({"n1", "n2"} if draw(seldom) else ()),
        pinned=draw(seldom),
        residency_priority=draw(st.sampled_from((100, 100, 100, 50, 300))),
        min_placements=draw(st.sampled_from((0, 0, 0, 1, 2))),
        max_placements=draw(st.sampled_from((None, None, None, 1, 2) + (0,) * (not is_calm))),
        idle_ttl=draw(st.none() | st.integers(0, 30).map(lambda n: timedelta(seconds=n))),
        reload_seconds=draw(st.none() | st.integers(1, 60).map(float)),
        recent_requests=draw(st.integers(0, 5)),
        cooldowns=() if is_calm else tuple(draw(st.lists(cooldowns, max_size=1))),
    )


@st.composite
def neurons(draw: st.DrawFn, neuron_id: int, is_calm: bool) -> NeuronView:
    seldom = NEVER if is_calm else SELDOM
    num_devices = st.integers(1, 3) if is_calm else st.integers(0, 3)
    return NeuronView(
        id=neuron_id,
        name=f"n{neuron_id}",
        phase=draw(st.sampled_from(NeuronPhase)) if draw(seldom) else NeuronPhase.HEALTHY,
        devices=tuple(
            DeviceView(index, size, size, NOW, usable=not draw(seldom))
            for index in range(draw(num_devices))
            for size in [draw(st.sampled_from((16, 24, 8)))]
        ),
        enabled=not draw(seldom),
        cordoned=draw(seldom),
        draining=draw(seldom),
        models_on_disk=frozenset(draw(st.sets(st.sampled_from(MODEL_IDS)))),
    )


@st.composite
def placements(
    draw: st.DrawFn, placement_id: int, on: NeuronView, model_id: str, is_calm: bool
) -> PlacementView:
    seldom = NEVER if is_calm else SELDOM
    indexes = [device.index for device in on.devices]
    spread = st.sets(st.sampled_from(indexes), min_size=1, max_size=2)
    phase = draw(st.sampled_from(P)) if draw(SELDOM) else P.READY
    return PlacementView(
        id=placement_id,
        model_id=model_id,
        neuron_id=on.id,
        device_indexes=tuple(sorted(draw(spread))),
        phase=phase,
        memory_bytes=draw(st.integers(8, 24) if is_calm else st.integers(0, 24)),
        phase_since=draw(moments),
        desired_present=not draw(seldom),
        in_flight=int(draw(SELDOM)),
        queued=int(draw(SELDOM)),
        last_used_at=draw(st.none() | moments),
        ready_at=draw(moments) if phase is P.READY else None,
        progress_at=draw(st.none() | moments),
        free_before_bytes=draw(st.none() | st.integers(0, 24)) if phase in ENDED else None,
    )


@st.composite
def snapshots(draw: st.DrawFn) -> FleetSnapshot:
    """Any fleet; every other one with reports that contradict its rows."""
    snapshot = draw(consistent_snapshots() | crowded_snapshots())
    if draw(st.booleans()):
        return snapshot
    return replace(snapshot, neurons=tuple(draw(_muddled(one)) for one in snapshot.neurons[:2]))


@st.composite
def _muddled(draw: st.DrawFn, one: NeuronView) -> NeuronView:
    devices = (
        replace(
            device,
            free_bytes=draw(st.integers(-2, 26)),
            observed_at=draw(st.none() | moments),
        )
        for device in one.devices
    )
    return replace(one, devices=tuple(devices))


@st.composite
def consistent_snapshots(draw: st.DrawFn) -> FleetSnapshot:
    """A fleet whose devices report as free what its placements do not hold."""
    is_calm = draw(st.sampled_from((True, True, False)))
    num_neurons = draw(st.integers(1, 3) if is_calm else st.integers(0, 3))
    fleet_neurons = [draw(neurons(id, is_calm)) for id in NEURON_IDS[:num_neurons]]
    rows = draw(_rows(fleet_neurons, is_calm))
    placed_ids = {row.model_id for row in rows}
    absent_ids = [model_id for model_id in MODEL_IDS if model_id not in placed_ids]
    wishes = st.builds(
        Waiting,
        st.sampled_from(absent_ids or MODEL_IDS) | st.sampled_from(MODEL_IDS),
        st.integers(1, 3),
        moments,
        st.sampled_from((None, None, None, *NEURON_IDS)),
    )
    return FleetSnapshot(
        now=NOW,
        neurons=tuple(with_true_memory(one, rows) for one in fleet_neurons),
        profiles=tuple(draw(profiles(model_id, is_calm)) for model_id in MODEL_IDS[:-1]),
        placements=tuple(rows),
        waiting=tuple(draw(st.lists(wishes, min_size=int(is_calm), max_size=4))),
        policy=Policy(
            eviction_strategy=draw(st.sampled_from(EvictionStrategy)),
            load_stall=timedelta(seconds=30),
        ),
    )


@st.composite
def crowded_snapshots(draw: st.DrawFn) -> FleetSnapshot:
    """Full devices, mostly of idle models, and newcomers that wait: there will be evictions."""
    fleet_neurons = [
        neuron(id, *(device(index) for index in range(draw(st.integers(1, 2)))))
        for id in NEURON_IDS[: draw(st.integers(1, 2))]
    ]
    rows: list[PlacementView] = []
    for one in fleet_neurons:
        for size in draw(st.lists(st.integers(6, 20), min_size=2, max_size=4)):
            row = draw(placements(len(rows) + 1, one, f"r{len(rows)}", True))
            row = replace(row, memory_bytes=size * len(row.device_indexes))
            if _fits(row, one, rows):
                rows.append(row)
    newcomers = [f"new{number}" for number in range(draw(st.integers(1, 3)))]
    calm = [draw(profiles(id, True)) for id in [*newcomers, *(row.model_id for row in rows)]]
    return FleetSnapshot(
        now=NOW,
        neurons=tuple(with_true_memory(one, rows) for one in fleet_neurons),
        profiles=tuple(calm),
        placements=tuple(rows),
        waiting=tuple(Waiting(id, 1, draw(moments)) for id in newcomers),
        policy=Policy(
            eviction_strategy=draw(st.sampled_from(EvictionStrategy)),
            load_stall=timedelta(seconds=30),
        ),
    )


@st.composite
def _rows(
    draw: st.DrawFn, fleet_neurons: Sequence[NeuronView], is_calm: bool
) -> list[PlacementView]:
    """Placements that fit together on their devices."""
    pairs = [(one, model_id) for one in fleet_neurons if one.devices for model_id in MODEL_IDS]
    if not pairs:
        return []
    chosen = draw(st.lists(st.sampled_from(pairs), min_size=2, max_size=7, unique=True))
    rows: list[PlacementView] = []
    for number, (one, model_id) in enumerate(chosen, start=1):
        row = draw(placements(number, one, model_id, is_calm))
        if row.phase not in OCCUPYING or _fits(row, one, rows):
            rows.append(row)
    return rows


def shuffled(snapshot: FleetSnapshot, random: Random) -> FleetSnapshot:
    """The same facts, read in another order."""

    return replace(
        snapshot,
        neurons=_mixed(
            random, [replace(one, devices=_mixed(random, one.devices)) for one in snapshot.neurons]
        ),
        profiles=_mixed(random, snapshot.profiles),
        placements=_mixed(random, snapshot.placements),
        waiting=_mixed(random, snapshot.waiting),
    )


def _mixed(random: Random, items: Sequence[Item]) -> tuple[Item, ...]:
    return tuple(random.sample(items, len(items)))


def with_true_memory(neuron: NeuronView, rows: Sequence[PlacementView]) -> NeuronView:
    """The neuron as it reports when every occupying placement but a pending one holds its share."""
    holding = [
        row
        for row in rows
        if row.neuron_id == neuron.id and row.phase in LIVE - {P.PENDING, P.LOST}
    ]
    return replace(
        neuron,
        devices=tuple(
            replace(device, free_bytes=device.total_bytes - share_sum(device.index, holding))
            for device in neuron.devices
        ),
    )


def share_sum(index: int, rows: Sequence[PlacementView]) -> int:
    return sum(row.bytes_per_device for row in rows if index in row.device_indexes)


def _fits(row: PlacementView, one: NeuronView, rows: Sequence[PlacementView]) -> bool:
    there = [other for other in (*rows, row) if other.neuron_id == one.id]
    occupying = [other for other in there if other.phase in OCCUPYING]
    return all(share_sum(device.index, occupying) <= device.total_bytes for device in one.devices)
