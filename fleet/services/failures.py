"""The end of a load that failed, and what is learned from it: a footprint, or to pause there."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction

from fleet.models import Cooldown, ModelProfile, Placement
from fleet.planner.backoff import cooldown_seconds
from fleet.planner.phases import PlacementPhase
from fleet.services.moves import move_placement
from neuron_agent.protocol import ErrorCode

LOAD_INTERRUPTED = "load_interrupted"
"""The neuron does not know of the load any more. Once that is bad luck: its first is forgiven."""

_MB = 2**20
_ERROR_LIMIT = Placement._meta.get_field("error").max_length or 1000


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a load failed, in a neuron's words where it had any."""

    code: str
    message: str
    hint: str | None = None
    needed_mb: int | None = None
    free_mb: int | None = None


def fail_placement(placement: Placement, failure: Failure, now: datetime) -> bool:
    """End a load, and learn from it: a footprint not known yet, or else to pause here."""
    hint = f" {failure.hint}" if failure.hint else ""
    reason = f"{failure.message}{hint}"[:_ERROR_LIMIT]
    changes = {
        "error_code": failure.code[:50],
        "error": reason,
        "in_flight": 0,
        "queued": 0,
    }
    data: dict[str, Any] = {
        "code": failure.code,
        "needed_mb": failure.needed_mb,
        "free_mb": failure.free_mb,
    }
    with transaction.atomic():
        data |= _learn(placement, failure, now)
        failed = PlacementPhase.FAILED
        is_moved = move_placement(placement, failed, reason, now, data=data, changes=changes)
        if not is_moved:  # somebody else ended it, and has learned what there was to learn
            transaction.set_rollback(True)
    return is_moved


def _learn(placement: Placement, failure: Failure, now: datetime) -> dict[str, Any]:
    """A need greater than was planned with is worth a second try at once; else pause."""
    profile = ModelProfile.objects.get(pk=placement.profile_id)
    needed_bytes = (failure.needed_mb or 0) * _MB
    if failure.code == ErrorCode.DOES_NOT_FIT and needed_bytes > _known_bytes(profile):
        columns: dict[str, Any] = {"estimated_bytes": needed_bytes}
        if _has_better_than_estimate(profile):
            # That figure was too small: only a learned one goes before it.
            columns |= {"learned_bytes": needed_bytes, "learned_for": profile.options_key}
        ModelProfile.objects.filter(pk=profile.pk).update(**columns)
        return {"learned_bytes": needed_bytes}
    cooldown, _ = Cooldown.objects.get_or_create(
        profile=profile, neuron_id=placement.neuron_id, defaults={"until": now}
    )
    cooldown.num_failures += 1
    num_forgiven = 1 if failure.code == LOAD_INTERRUPTED else 0
    pause_seconds = cooldown_seconds(cooldown.num_failures - num_forgiven)
    cooldown.until = now + timedelta(seconds=pause_seconds)
    cooldown.save()
    return {"cooldown_seconds": pause_seconds, "num_failures": cooldown.num_failures}


def _known_bytes(profile: ModelProfile) -> int:
    """The figure the planner goes by: measured, else declared, else estimated."""
    if _is_measured(profile):
        return profile.learned_bytes or 0
    if profile.vram_mb is not None:
        return profile.vram_mb * _MB
    return profile.estimated_bytes or 0


def _has_better_than_estimate(profile: ModelProfile) -> bool:
    return _is_measured(profile) or profile.vram_mb is not None


def _is_measured(profile: ModelProfile) -> bool:
    return profile.learned_bytes is not None and profile.learned_for == profile.options_key
