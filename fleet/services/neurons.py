"""The neurons as operators want them: added, enabled, cordoned, drained; and seen unreachable.

What a neuron reports of itself is written in `observe`, never here.
"""

from collections.abc import Mapping
from datetime import datetime
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.db import transaction

from fleet.models import EventKind, Neuron
from fleet.notify import publish_fleet_changed, request_reconcile
from fleet.planner.phases import LIVE, NeuronPhase
from fleet.services.errors import InvalidFleetChange, UnknownNeuron
from fleet.services.events import record_neuron_event
from fleet.services.moves import move_neuron
from fleet.token_vault import decrypt_token, encrypt_token

_ERROR_LIMIT = Neuron._meta.get_field("last_error").max_length or 500


def add_neuron(
    name: str, endpoint: str, token: str | None, now: datetime, actor: str = ""
) -> Neuron:
    """Add a neuron, or give the one of that name a new address, and a token if there is one.

    Raises InvalidFleetChange.
    """
    neuron = Neuron.objects.filter(name=name).first()
    if neuron is None:
        return enrol_neuron(Neuron(name=name, endpoint=endpoint), token, now, actor)
    with transaction.atomic():
        is_token_gone = change_endpoint(neuron.pk, endpoint, now, actor)
        if token and (is_token_gone or decrypt_token(neuron.token_encrypted) != token):
            set_neuron_token(neuron.pk, token, now, actor)
        set_enabled(neuron.pk, True, now, actor)
    return Neuron.objects.get(pk=neuron.pk)


def enrol_neuron(neuron: Neuron, token: str | None, now: datetime, actor: str = "") -> Neuron:
    """Save a new neuron. Raises InvalidFleetChange."""
    neuron.endpoint = neuron.endpoint.rstrip("/")
    neuron.token_encrypted = encrypt_token(token)
    _validate(neuron)
    with transaction.atomic():
        neuron.save(force_insert=True)
        _record(neuron, f"{neuron.name} added: {neuron.endpoint}", now, actor)
    return neuron


def set_neuron_token(neuron_id: int, token: str | None, now: datetime, actor: str = "") -> None:
    """Replace the token Cortex presents to a neuron; an empty one takes it away."""
    with transaction.atomic():
        Neuron.objects.filter(pk=neuron_id).update(token_encrypted=encrypt_token(token))
        neuron = _find(neuron_id)
        _record(neuron, f"{neuron.name}: token {'replaced' if token else 'removed'}", now, actor)


def change_endpoint(neuron_id: int, endpoint: str, now: datetime, actor: str = "") -> bool:
    """Give a neuron a new address; return whether its token was removed, for a new one to be set.

    A token is one host's secret: another host that is named here must not be told it.
    Raises InvalidFleetChange.
    """
    neuron = _find(neuron_id)
    old_host = _host(neuron.endpoint)
    neuron.endpoint = endpoint.rstrip("/")
    _validate(neuron)
    columns: dict[str, object] = {"endpoint": neuron.endpoint}
    message = f"endpoint is {neuron.endpoint}"
    is_token_gone = bool(neuron.token_encrypted) and _host(neuron.endpoint) != old_host
    if is_token_gone:
        columns["token_encrypted"] = None
        message += f"; token removed, as it was for {old_host}"
    return _change(neuron, columns, message, now, actor) and is_token_gone


def remove_neuron(neuron_id: int, now: datetime, actor: str = "") -> None:
    """Take a neuron out of the fleet. Raises InvalidFleetChange while models are on it."""
    neuron = _find(neuron_id)
    with transaction.atomic():
        if neuron.placements.filter(phase__in=sorted(LIVE)).exists():
            raise InvalidFleetChange(f"{neuron.name} still has models: drain it first.")
        _record(neuron, f"{neuron.name} removed", now, actor)
        neuron.delete()


def set_enabled(neuron_id: int, enabled: bool, now: datetime, actor: str = "") -> bool:
    """Enable, or neither poll nor use any more. False if it is so already."""
    verb = "enabled" if enabled else "disabled"
    return _change(_find(neuron_id), {"enabled": enabled}, verb, now, actor)


def cordon(neuron_id: int, now: datetime, actor: str = "") -> bool:
    """Place nothing new there."""
    return _change(_find(neuron_id), {"cordoned": True}, "cordoned", now, actor)


def drain(neuron_id: int, now: datetime, actor: str = "") -> bool:
    """Place nothing new there, and unload what is there when its requests are done."""
    return _change(_find(neuron_id), {"cordoned": True, "draining": True}, "draining", now, actor)


def uncordon(neuron_id: int, now: datetime, actor: str = "") -> bool:
    """Undo both."""
    return _change(
        _find(neuron_id), {"cordoned": False, "draining": False}, "uncordoned", now, actor
    )


def report_unreachable(neuron_id: int, error: str, now: datetime) -> bool:
    """A gateway's connection was refused: nobody else needs to try. False if that is known."""
    neuron = Neuron.objects.filter(pk=neuron_id, phase=NeuronPhase.HEALTHY).first()
    if neuron is None:
        return False
    changes = {"last_error": error[:_ERROR_LIMIT]}
    moved = move_neuron(
        neuron, NeuronPhase.UNHEALTHY, f"unreachable: {error}", now, changes=changes
    )
    if moved:
        request_reconcile()
    return moved


def find_neuron(name: str) -> Neuron:
    """Raises UnknownNeuron."""
    neuron = Neuron.objects.filter(name=name).first()
    if neuron is None:
        raise UnknownNeuron(name)
    return neuron


def _find(neuron_id: int) -> Neuron:
    neuron = Neuron.objects.filter(pk=neuron_id).first()
    if neuron is None:
        raise UnknownNeuron(str(neuron_id))
    return neuron


def _host(endpoint: str) -> str | None:
    return urlsplit(endpoint).hostname


def _change(
    neuron: Neuron, columns: Mapping[str, object], message: str, now: datetime, actor: str
) -> bool:
    with transaction.atomic():
        # Whoever finds it as asked has nothing to do and nothing to tell.
        others = Neuron.objects.filter(pk=neuron.pk).exclude(**columns)
        if not others.update(**columns):
            return False
        _record(neuron, f"{neuron.name} {message}", now, actor)
    return True


def _record(neuron: Neuron, message: str, now: datetime, actor: str) -> None:
    record_neuron_event(neuron, message, now, kind=EventKind.OPERATOR, actor=actor)
    publish_fleet_changed()
    request_reconcile()


def _validate(neuron: Neuron) -> None:
    try:
        neuron.full_clean(exclude=["token_encrypted"])
    except ValidationError as error:
        raise InvalidFleetChange(_in_words(error)) from None


def _in_words(error: ValidationError) -> str:
    return " ".join(
        f"{field}: {' '.join(messages)}" for field, messages in error.message_dict.items()
    )
