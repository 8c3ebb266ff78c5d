"""Who waits for which model: written by gateways and operators, answered by the planner's verdict.

A row expires by itself, so a gateway that dies leaves no wish behind. Nothing here decides what
a wish leads to.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec
from django.db import transaction

from fleet.models import Demand, EventKind, ModelProfile, Neuron, Placement
from fleet.notify import publish_fleet_changed, request_reconcile
from fleet.planner.actions import Hold, Refusal, Refuse
from fleet.planner.backoff import is_only_cooling_down
from fleet.planner.phases import PlacementPhase
from fleet.services.errors import UnknownModel, UnknownNeuron
from fleet.services.events import record_event
from fleet.wording import in_words

OPERATOR = "operator"
DEMAND_LIFETIME_SECONDS = 10.0


def operator_source(neuron_id: int | None) -> str:
    """An operator may want a model on several neurons: one wish for each."""
    return OPERATOR if neuron_id is None else f"{OPERATOR}@{neuron_id}"


def is_operator(source: str) -> bool:
    return source == OPERATOR or source.startswith(f"{OPERATOR}@")


def request_placement(
    model_id: str,
    source: str,
    num_waiting: int,
    now: datetime,
    on_neuron: int | None = None,
    lifetime_seconds: float = DEMAND_LIFETIME_SECONDS,
) -> None:
    """Say that requests wait for a model, and ask for a pass. One row, however many wait.

    Raises UnknownModel, UnknownNeuron.
    """
    profile = find_profile(model_id)
    if on_neuron is not None and not Neuron.objects.filter(pk=on_neuron).exists():
        raise UnknownNeuron(str(on_neuron))
    expires_at = now + timedelta(seconds=lifetime_seconds)
    with transaction.atomic():
        demand, is_new = Demand.objects.get_or_create(
            profile=profile,
            source=source,
            defaults={
                "num_waiting": num_waiting,
                "since": now,
                "expires_at": expires_at,
                "on_neuron_id": on_neuron,
            },
        )
        if not is_new:
            _renew(demand, num_waiting, on_neuron, expires_at, now)
        request_reconcile()


def renew_demand(source: str, num_waiting_by_model: Mapping[str, int], now: datetime) -> None:
    """Say that these still wait. Others' rows stay: they are withdrawn, or expire."""
    expires_at = now + timedelta(seconds=DEMAND_LIFETIME_SECONDS)
    with transaction.atomic():
        demands = Demand.objects.filter(source=source).select_related("profile")
        known = {demand.profile.model_id: demand for demand in demands}
        for model_id in num_waiting_by_model.keys() & known.keys():
            _renew(known[model_id], num_waiting_by_model[model_id], None, expires_at, now)
    # A row that had expired, and was deleted, while requests went on waiting.
    for model_id in num_waiting_by_model.keys() - known.keys():
        request_placement(model_id, source, num_waiting_by_model[model_id], now)


def withdraw_demand(model_id: str, source: str) -> None:
    """The last one who waited left, or was served."""
    Demand.objects.filter(profile__model_id=model_id, source=source).delete()


def record_verdict(verdict: Hold | Refuse, now: datetime) -> bool:
    """Write the planner's answer beside the demands it is for; False if it is no news.

    An answer about one neuron is for those who want the model there, and for nobody else.
    Numbers in the details change all the time: an event is made of other neurons or codes only.
    """
    kind = "refuse" if isinstance(verdict, Refuse) else "hold"
    answer = {"kind": kind, "refusals": [msgspec.to_builtins(r) for r in verdict.refusals]}
    with transaction.atomic():
        demands = Demand.objects.filter(
            profile__model_id=verdict.model_id,
            on_neuron=verdict.on_neuron_id,
            expires_at__gt=now,
        )
        outdated = [demand for demand in demands if demand.verdict != answer]
        if not outdated:
            return False
        Demand.objects.filter(pk__in=[demand.pk for demand in outdated]).update(verdict=answer)
        if all(_gist(demand.verdict) == _gist(answer) for demand in outdated):
            return True
        record_event(
            EventKind.DECISION,
            f"{verdict.model_id} {_in_words(kind)}: {in_words(verdict.refusals)}",
            now,
            model=verdict.model_id,
            data=answer,
        )
        publish_fleet_changed()
    return True


def _gist(verdict: Mapping[str, Any] | None) -> object:
    if verdict is None:
        return None
    return verdict["kind"], sorted((r["neuron"], r["code"]) for r in verdict["refusals"])


def settle_demands(now: datetime) -> None:
    """Delete what expired, and an operator's wish once it is fulfilled or has failed."""
    done = [
        demand.pk
        for demand in Demand.objects.select_related("profile")
        if demand.expires_at <= now or (is_operator(demand.source) and _is_settled(demand))
    ]
    if done:
        Demand.objects.filter(pk__in=done).delete()


def _is_settled(wish: Demand) -> bool:
    placements = Placement.objects.filter(profile=wish.profile, phase=PlacementPhase.READY)
    if wish.on_neuron_id is not None:
        placements = placements.filter(neuron=wish.on_neuron_id)
    # Its cool-downs were lifted when it was asked for: one that stands now is a load that failed.
    refusals = msgspec.convert((wish.verdict or {}).get("refusals", ()), tuple[Refusal, ...])
    return is_only_cooling_down(refusals) or placements.exists()


def _in_words(kind: str) -> str:
    return "waits" if kind == "hold" else "can be placed nowhere"


def _renew(
    demand: Demand, num_waiting: int, on_neuron: int | None, expires_at: datetime, now: datetime
) -> None:
    """Prolong a wish; one that had expired begins anew."""
    changes: dict[str, object] = {"num_waiting": num_waiting, "expires_at": expires_at}
    if on_neuron is not None:
        changes["on_neuron_id"] = on_neuron
    if demand.expires_at <= now:
        changes |= {"since": now, "verdict": None}
    Demand.objects.filter(pk=demand.pk).update(**changes)


def find_profile(model_id: str) -> ModelProfile:
    """Return the catalogue row of a model, also by an alias. Raises UnknownModel."""
    profile = ModelProfile.objects.filter(model_id=model_id).first()
    profile = profile or ModelProfile.objects.filter(aliases__name=model_id).first()
    if profile is None:
        raise UnknownModel(model_id)
    return profile
