"""Which devices of a neuron, and whom they cost."""

from itertools import combinations
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fleet.planner.actions import Refusal, RefusalCode
from fleet.planner.eviction import Newcomer, freed_bytes, is_evictable_now, may_displace
from fleet.planner.memory import DeviceMemory, device_memory, need_of
from fleet.planner.room import Place, Room, Site, find_room
from fleet.planner.snapshot import FleetSnapshot, NeuronView, PlacementView, ProfileView
from tests.fleet.planner.fleets import LAW, P, ago, device, fleet, model, neuron, placed, snapshots


def site_of(snapshot: FleetSnapshot, one: NeuronView, profile: ProfileView) -> Site | None:
    """The site as the filter would hand it on; None if it would not."""
    need = need_of(profile)
    devices = tuple(d for d in one.devices if d.usable and d.total_bytes >= need.bytes_per_device)
    if len(devices) < need.num_devices:
        return None
    return Site(one, devices, Newcomer(profile), need, snapshot)


@st.composite
def sites(draw: st.DrawFn) -> Site:
    snapshot = draw(snapshots())
    found = [
        site
        for one in snapshot.neurons
        for profile in snapshot.profiles
        if (site := site_of(snapshot, one, profile)) is not None
    ]
    if not found:
        snapshot = fleet([neuron()], [model("a")])
        found = [Site(neuron(), (device(),), Newcomer(model("a")), need_of(model("a")), snapshot)]
    return draw(st.sampled_from(found))


def memory_of(site: Site) -> dict[int, DeviceMemory]:
    there = tuple(site.placements)
    return {d.index: device_memory(d, there, site.snapshot) for d in site.devices}


def fits_after(site: Site, indexes: tuple[int, ...], victims: tuple[PlacementView, ...]) -> bool:
    memory = memory_of(site)
    return all(
        memory[index].eventual_bytes + freed_bytes(index, victims) >= site.need.bytes_per_device
        for index in indexes
    )


@LAW
@given(sites())
def test_the_newcomer_fits_on_each_device_and_no_victim_can_be_spared(site: Site) -> None:
    found = find_room(site)
    if isinstance(found, Refusal):
        return
    assert len(set(found.device_indexes)) == site.need.num_devices
    assert fits_after(site, found.device_indexes, found.victims)
    for victim in found.victims:
        fewer = tuple(other for other in found.victims if other is not victim)
        assert not fits_after(site, found.device_indexes, fewer)


@LAW
@given(sites())
def test_nobody_is_evicted_where_there_is_or_will_be_room(site: Site) -> None:
    found = find_room(site)
    share = site.need.bytes_per_device
    memory = memory_of(site).values()
    has_room = sum(m.free_bytes >= share for m in memory) >= site.need.num_devices
    will_have = sum(m.eventual_bytes >= share for m in memory) >= site.need.num_devices
    assert (isinstance(found, Place) and found.room is Room.FREE) is has_room
    if will_have:
        assert isinstance(found, Place)
        assert not found.victims


@LAW
@given(sites())
def test_victims_are_ready_idle_and_displaceable(site: Site) -> None:
    found = find_room(site)
    for victim in found.victims if isinstance(found, Place) else ():
        assert victim.neuron_id == site.neuron.id
        assert victim.phase is P.READY
        assert victim.idle
        assert may_displace(site.newcomer, victim, site.snapshot)


@LAW
@given(sites())
def test_it_refuses_only_if_no_set_of_devices_can_be_cleared(site: Site) -> None:
    if isinstance(find_room(site), Place):
        return
    evictable = tuple(
        placement
        for placement in site.placements
        if is_evictable_now(placement, site.snapshot)
        and may_displace(site.newcomer, placement, site.snapshot)
    )
    indexes = sorted(memory_of(site))
    for chosen in combinations(indexes, site.need.num_devices):
        assert not fits_after(site, chosen, evictable)


def found_on(
    one: NeuronView, new: ProfileView, *placements: PlacementView, **policy: Any
) -> Place | Refusal:
    snapshot = fleet([one], [new], placements, **policy)
    site = site_of(snapshot, one, new)
    assert site is not None
    return find_room(site)


def test_the_freest_devices_are_chosen() -> None:
    one = neuron(1, device(0, free=11), device(1, free=24), device(2, free=12))
    for num_devices, indexes in ((1, (1,)), (2, (1, 2))):
        new = model("new", 10 * num_devices, min_devices=num_devices)
        found = found_on(one, new)
        assert isinstance(found, Place)
        assert found.device_indexes == indexes


def test_every_device_needs_the_full_share() -> None:
    one = neuron(1, device(0, free=24), device(1, free=9))
    found = found_on(one, model("new", 20, min_devices=2))
    assert isinstance(found, Refusal)
    assert found.code is RefusalCode.MEMORY_TAKEN


def test_the_devices_with_the_cheapest_victims_are_cleared() -> None:
    one = neuron(1, device(0, free=4), device(1, free=4), device(2, free=14))
    new = model("new", 20, min_devices=2)
    recent, old = placed(1, "recent", 20, used=5), placed(2, "old", 20, used=50, devices=(1,))
    found = found_on(one, new, recent, old)
    assert isinstance(found, Place)
    assert (found.device_indexes, found.victims) == ((1, 2), (old,))


def test_one_victim_on_two_devices_is_stopped_once() -> None:
    one = neuron(1, device(0, free=4), device(1, free=4))
    spread = placed(1, "old", 40, devices=(0, 1))
    found = found_on(one, model("new", 20, min_devices=2), spread)
    assert isinstance(found, Place)
    assert found.victims == (spread,)


def test_what_is_leaving_counts_so_that_fewer_are_stopped() -> None:
    one = neuron(1, device(free=0))
    leaving = placed(1, "gone", 6, phase=P.DRAINING, ready_at=ago(60))
    idle = [placed(2, "b", 6, used=50), placed(3, "c", 6, used=40), placed(4, "d", 6, used=30)]
    found = found_on(one, model("new", 12), leaving, *idle)
    assert isinstance(found, Place)
    assert [victim.id for victim in found.victims] == [2]


def test_many_devices_are_compared_without_trying_all_sets() -> None:
    one = neuron(1, *(device(index, free=0) for index in range(16)))
    residents = [placed(n, f"m{n}", 24, devices=(n,), used=n + 10) for n in range(16)]
    found = found_on(one, model("new", 8 * 24, min_devices=8), *residents)
    assert isinstance(found, Place)
    assert len(found.victims) == 8
