"""The catalogue's rows and what an operator wants of a model: load it, unload it.

A wish is written down and a pass asked for; where the model goes is the planner's business.
"""

from datetime import datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction

from fleet.models import Alias, Cooldown, Demand, Desired, EventKind, ModelProfile, Placement
from fleet.notify import publish_fleet_changed, request_reconcile
from fleet.planner.phases import LEAVING, LIVE
from fleet.services.demand import OPERATOR, find_profile, operator_source, request_placement
from fleet.services.errors import InvalidFleetChange
from fleet.services.events import record_event
from fleet.services.neurons import find_neuron

OPERATOR_DEMAND_SECONDS = 600.0
"""How long an operator's load may find no room before it is forgotten."""


def register_profile(model_id: str, **columns: Any) -> ModelProfile:
    """Put a model into the catalogue, or bring its row to these columns; others keep theirs.

    Writes nothing when nothing changes. Raises InvalidFleetChange.
    """
    profile = ModelProfile.objects.filter(model_id=model_id).first()
    if profile is not None and all(
        getattr(profile, name) == value for name, value in columns.items()
    ):
        return profile
    profile = profile or ModelProfile(model_id=model_id)
    for name, value in columns.items():
        setattr(profile, name, value)
    return save_profile(profile)


def save_profile(profile: ModelProfile) -> ModelProfile:
    """Save what an operator entered, and not what was learned meanwhile.

    Raises InvalidFleetChange.
    """
    profile.discovered = False
    try:
        profile.full_clean()
    except ValidationError as error:
        raise InvalidFleetChange(str(error.message_dict)) from None
    columns = [field.name for field in profile._meta.concrete_fields if field.editable]
    entered = [name for name in columns if name != profile._meta.pk.name]
    with transaction.atomic():
        profile.save(update_fields=[*entered, "discovered"] if profile.pk else None)
        publish_fleet_changed()
        request_reconcile()
    return profile


def profile_pins_changed() -> None:
    """Where a model may run was changed: placements may have to be made elsewhere."""
    publish_fleet_changed()
    request_reconcile()


def remove_profile(profile_id: int, now: datetime, actor: str = "") -> None:
    """Take a model out of the catalogue. Raises InvalidFleetChange while it is loaded."""
    profile = ModelProfile.objects.get(pk=profile_id)
    with transaction.atomic():
        if profile.placements.filter(phase__in=sorted(LIVE)).exists():
            raise InvalidFleetChange(f"{profile.model_id} is loaded: unload it first.")
        message = f"{profile.model_id} removed from the catalogue"
        _record(profile, message, None, now, actor)
        profile.delete()
        publish_fleet_changed()


def save_alias(alias: Alias) -> None:
    """Raises InvalidFleetChange for a name that a model has."""
    if ModelProfile.objects.filter(model_id=alias.name).exists():
        raise InvalidFleetChange(f"{alias.name} is the name of a model.")
    with transaction.atomic():
        alias.save()
        publish_fleet_changed()


def remove_alias(alias_id: int) -> None:
    with transaction.atomic():
        Alias.objects.filter(pk=alias_id).delete()
        publish_fleet_changed()


def request_load(
    model_id: str, neuron_name: str | None, now: datetime, actor: str = ""
) -> ModelProfile:
    """Want a model loaded, on a certain neuron or the best one.

    An operator who asks knows better than an old failure: cool-downs are lifted.
    Raises UnknownModel, UnknownNeuron.
    """
    profile = find_profile(model_id)
    neuron = find_neuron(neuron_name) if neuron_name else None
    neuron_id = neuron.pk if neuron else None
    source = operator_source(neuron_id)
    where = f" on {neuron_name}" if neuron_name else ""
    with transaction.atomic():
        cooldowns = Cooldown.objects.filter(profile=profile)
        (cooldowns.filter(neuron=neuron) if neuron else cooldowns).delete()
        Demand.objects.filter(profile=profile, source=source).delete()
        _record(profile, f"load of {profile.model_id}{where} requested", neuron_name, now, actor)
        request_placement(
            profile.model_id, source, 1, now, neuron_id, lifetime_seconds=OPERATOR_DEMAND_SECONDS
        )
    return profile


def request_unload(model_id: str, neuron_name: str | None, now: datetime, actor: str = "") -> int:
    """Want a model's placements gone, on one neuron or everywhere; return how many there are.

    Running requests may finish. Raises UnknownModel, UnknownNeuron.
    """
    profile = find_profile(model_id)
    placements = Placement.objects.filter(profile=profile, phase__in=sorted(LIVE))
    wishes = Demand.objects.filter(profile=profile, source__startswith=OPERATOR)
    if neuron_name:
        neuron = find_neuron(neuron_name)
        placements = placements.filter(neuron=neuron)
        wishes = wishes.filter(on_neuron=neuron)
    return _want_absent(profile, placements, wishes, neuron_name, now, actor)


def request_unload_of(placement_id: int, now: datetime, actor: str = "") -> int:
    """Want one placement gone; 0 if it is, or is going."""
    placement = Placement.objects.select_related("profile", "neuron").get(pk=placement_id)
    if placement.phase not in LIVE or placement.phase in LEAVING:
        return 0
    return request_unload(placement.profile.model_id, placement.neuron.name, now, actor)


def _want_absent(
    profile: ModelProfile,
    placements: Any,
    wishes: Any,
    neuron_name: str | None,
    now: datetime,
    actor: str,
) -> int:
    where = f" on {neuron_name}" if neuron_name else ""
    with transaction.atomic():
        wishes.delete()
        num_placements: int = placements.update(desired=Desired.ABSENT)
        if num_placements:
            _record(
                profile, f"unload of {profile.model_id}{where} requested", neuron_name, now, actor
            )
            publish_fleet_changed()
            request_reconcile()
    return num_placements


def _record(
    profile: ModelProfile, message: str, neuron_name: str | None, now: datetime, actor: str
) -> None:
    record_event(
        EventKind.OPERATOR,
        message,
        now,
        model=profile.model_id,
        neuron=neuron_name or "",
        actor=actor,
    )
