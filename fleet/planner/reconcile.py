"""What to do now: the ordered list of rules that turn a snapshot into a plan.

It keeps nothing between passes and never looks back: where victims must go first, this pass says
so, and a later one, in whose snapshot the memory is back, says to load. It does not know how an
action is carried out, nor whether it worked; the next snapshot tells.
"""

from collections.abc import Callable, Iterator

from fleet.planner.actions import Action, Explanation
from fleet.planner.arrivals import place_wanted
from fleet.planner.departures import (
    fail_stalled,
    mark_lost,
    unload_idle,
    unload_surplus,
    unload_what_must_go,
    withdraw_unwanted,
)
from fleet.planner.draft import Draft
from fleet.planner.eviction import Newcomer
from fleet.planner.memory import need_of
from fleet.planner.placement import Placeable, find_place
from fleet.planner.snapshot import FleetSnapshot
from fleet.planner.wanted import wants

CLEARING_RULES: tuple[Callable[[Draft], None], ...] = (
    mark_lost,
    fail_stalled,
    unload_what_must_go,
    withdraw_unwanted,
)
RULES = (*CLEARING_RULES, place_wanted, unload_idle, unload_surplus)


def plan(snapshot: FleetSnapshot) -> tuple[Action, ...]:
    """Return what to do now, in this order. The same facts in any order give the same plan."""
    draft = Draft(snapshot)
    for rule in RULES:
        rule(draft)
    return tuple(draft.actions)


def explain(snapshot: FleetSnapshot, model_id: str) -> Explanation:
    """Say where one more copy of the model would go now, and why not elsewhere."""
    draft = Draft(snapshot)
    for rule in CLEARING_RULES:
        rule(draft)
    profile = draft.snapshot.profile(model_id)
    need = need_of(profile)
    answer = find_place(Newcomer(profile), draft.snapshot.neurons, draft.snapshot)
    place = answer.place if isinstance(answer, Placeable) else None
    return Explanation(
        model_id=model_id,
        needed_bytes=need.total_bytes,
        memory_source=need.source,
        chosen_neuron=place.neuron.name if place else None,
        device_indexes=place.device_indexes if place else (),
        victims=tuple(victim.id for victim in place.victims) if place else (),
        refusals=answer.refusals,
        facts=dict(_facts(model_id, draft.snapshot)),
    )


def _facts(model_id: str, snapshot: FleetSnapshot) -> Iterator[tuple[str, str]]:
    """What the answer rests on, for an operator to read."""
    names = {neuron.id: neuron.name for neuron in snapshot.neurons}
    for placement in snapshot.placements_of(model_id):
        where = names.get(placement.neuron_id, f"neuron {placement.neuron_id}")
        devices = ", ".join(map(str, placement.device_indexes))
        yield f"placement {placement.id}", f"{placement.phase} on {where}, device(s) {devices}"
    for want in wants(snapshot):
        if want.model_id == model_id:
            where = "" if want.on_neuron_id is None else f" on {names.get(want.on_neuron_id, '?')}"
            yield f"wanted{where}", want.reason
