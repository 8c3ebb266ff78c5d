"""The rule by which placements begin: load what is wanted, make room for it, or say why not.

Where there is room is another file's business; here it becomes actions, one want after another,
each seeing what those before it were given.
"""

from fleet.planner.actions import Hold, Load, Refusal, RefusalCode, Refuse, Unload, UnloadReason
from fleet.planner.draft import Draft
from fleet.planner.eviction import Newcomer
from fleet.planner.memory import need_of
from fleet.planner.placement import Placeable, Unplaceable, find_place
from fleet.planner.room import Place
from fleet.planner.snapshot import FleetSnapshot, ProfileView
from fleet.planner.wanted import (
    Want,
    is_servable,
    num_to_keep,
    on_healthy_neurons,
    staying_placements,
    wants,
)


def place_wanted(draft: Draft) -> None:
    """Load what is wanted and not there, or make room for it, or say why not."""
    for want in wants(draft.snapshot):
        if not _is_met(want, draft.snapshot):
            _meet(want, draft)


def _is_met(want: Want, snapshot: FleetSnapshot) -> bool:
    profile = snapshot.profile(want.model_id)
    staying = staying_placements(want.model_id, snapshot)
    if want.is_standing:
        return len(staying) >= num_to_keep(profile)
    if not is_servable(profile):
        return False
    if want.on_neuron_id is not None:
        return any(placement.neuron_id == want.on_neuron_id for placement in staying)
    return bool(on_healthy_neurons(staying, snapshot))


def _meet(want: Want, draft: Draft) -> None:
    """Place one more copy.

    While the only copies are on a neuron that misses polls, requests get another one where room
    is free, but nothing is evicted for a doubt: either the neuron answers again, or it is lost.
    """
    snapshot = draft.snapshot
    profile = snapshot.profile(want.model_id)
    if refusals := _limit_refusals(profile, snapshot):
        _tell(want, refusals, draft, may_pass=True)
        return
    is_in_doubt = _has_copy_in_doubt(want, snapshot)
    neurons = (n for n in snapshot.neurons if want.on_neuron_id in (None, n.id))
    newcomer = Newcomer(profile, want.is_standing)
    match find_place(newcomer, neurons, snapshot, may_evict=not is_in_doubt):
        case Placeable(place, refusals):
            _take(place, want, refusals, draft)
        case Unplaceable(refusals, awaited):
            may_pass = is_in_doubt or any(refusal.code.passes for refusal in refusals)
            _tell(want, refusals, draft, may_pass)
            if awaited is not None:
                _reserve(awaited, profile, draft)


def _has_copy_in_doubt(want: Want, snapshot: FleetSnapshot) -> bool:
    """Whether a request, not met by any healthy copy, may yet be by one on a silent neuron."""
    if want.is_standing or want.on_neuron_id is not None:
        return False
    is_there = bool(staying_placements(want.model_id, snapshot))
    return is_there and is_servable(snapshot.profile(want.model_id))


def _limit_refusals(profile: ProfileView, snapshot: FleetSnapshot) -> tuple[Refusal, ...]:
    """The copies that use up `max_placements`: one of them must go before another comes."""
    staying = staying_placements(profile.id, snapshot)
    limit = profile.max_placements
    if limit is None or len(staying) < limit or not is_servable(profile):
        return ()
    detail = f"one of at most {limit} placements"
    neuron_ids = {placement.neuron_id for placement in staying}
    return tuple(
        Refusal(neuron.name, RefusalCode.ALREADY_HERE, detail)
        for neuron in snapshot.neurons
        if neuron.id in neuron_ids
    )


def _take(place: Place, want: Want, refusals: tuple[Refusal, ...], draft: Draft) -> None:
    """Load there; if somebody must go first, only that is said now, and the memory is kept."""
    profile = draft.snapshot.profile(want.model_id)
    need = need_of(profile)
    if not place.victims:
        draft.decide(
            Load(
                model_id=want.model_id,
                neuron_id=place.neuron.id,
                device_indexes=place.device_indexes,
                memory_bytes=need.total_bytes,
                memory_source=need.source,
                reason=want.reason,
                refusals=refusals,
            )
        )
        return
    for victim in place.victims:
        draft.decide(
            Unload(
                victim.id,
                UnloadReason.EVICTED,
                f"makes room for {want.model_id} ({want.reason})",
                only_if_idle=True,
                for_model_id=want.model_id,
                needed_bytes=need.total_bytes,
                freed_bytes=victim.memory_bytes,
            )
        )
    _reserve(place, profile, draft)


def _reserve(place: Place, profile: ProfileView, draft: Draft) -> None:
    """Those who came later may not spend what this one waits for."""
    num_bytes = need_of(profile).total_bytes
    draft.reserve(profile.id, place.neuron.id, place.device_indexes, num_bytes)


def _tell(want: Want, refusals: tuple[Refusal, ...], draft: Draft, may_pass: bool) -> None:
    answer = (Hold if may_pass else Refuse)(want.model_id, refusals, want.on_neuron_id)
    is_told = any(
        isinstance(action, Hold | Refuse)
        and (action.model_id, action.on_neuron_id) == (want.model_id, want.on_neuron_id)
        for action in draft.actions
    )
    if not is_told:  # a standing wish has nothing to add to what was said to those who wait
        draft.decide(answer)
