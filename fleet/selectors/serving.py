"""What a gateway needs to answer requests without a query: one immutable view of the fleet.

It is read as a whole, in a fixed number of queries. Which placement a request gets, and what a
client is told, is not decided here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal

from fleet.models import Alias, Cooldown, Demand, Desired, ModelProfile, Neuron, Placement
from fleet.planner.actions import Refusal
from fleet.planner.backoff import LONGEST_COOLDOWN_SECONDS
from fleet.planner.phases import NeuronPhase, PlacementPhase
from fleet.planner.placement import feasible_neurons
from fleet.planner.snapshot import NeuronView
from fleet.selectors.progress import live_placements, refusals_from_rows
from fleet.selectors.snapshot import neuron_rows, neuron_view, profile_rows, profile_view
from fleet.token_vault import decrypt_token


@dataclass(frozen=True, slots=True)
class ServedNeuron:
    id: int
    name: str
    endpoint: str
    token: str | None
    phase: NeuronPhase
    dispatchable: bool
    """Enabled, healthy and not draining: requests may be sent there."""


@dataclass(frozen=True, slots=True)
class ServedPlacement:
    id: int
    model_id: str
    neuron_id: int
    phase: PlacementPhase
    desired_present: bool
    device_indexes: tuple[int, ...]
    memory_bytes: int
    in_flight: int
    queued: int
    stage: str
    percent: float
    requested_at: datetime
    ready_at: datetime | None
    servable: bool
    unservable_reason: str = ""


@dataclass(frozen=True, slots=True)
class LoadFailureView:
    error_code: str
    error: str
    at: datetime
    neuron: str


@dataclass(frozen=True, slots=True)
class ServedModel:
    model_id: str
    enabled: bool
    harness: str
    capabilities: tuple[str, ...]
    limit_context: int | None
    limit_input: int | None
    limit_output: int | None
    tool_call: bool
    reasoning: bool
    cost_input: Decimal | None
    cost_output: Decimal | None
    load_seconds: float | None
    feasible_on: tuple[str, ...]
    """Neurons it could be placed on as the fleet is built, whatever is loaded now."""
    created_at: datetime
    failure: LoadFailureView | None = None
    """Its newest failed load, while the neuron that failed it cools down."""
    source: str = ""
    revision: str = ""
    quant: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The planner's last word on a model that is waited for since `since`."""

    kind: Literal["hold", "refuse"]
    refusals: tuple[Refusal, ...]
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class ServingView:
    taken_at: datetime
    models: Mapping[str, ServedModel]
    aliases: Mapping[str, str]
    placements: tuple[ServedPlacement, ...]
    neurons: Mapping[int, ServedNeuron]
    verdicts: Mapping[str, Verdict]


def serving_view(now: datetime) -> ServingView:
    """Read all a gateway needs, in 10 queries at most."""
    neurons = neuron_rows()
    profiles = profile_rows()
    failures = _failures(now)
    neuron_views = tuple(neuron_view(neuron) for neuron in neurons)
    return ServingView(
        taken_at=now,
        models={
            profile.model_id: _served_model(profile, neuron_views, failures.get(profile.pk))
            for profile in profiles
        },
        aliases=dict(Alias.objects.values_list("name", "profile__model_id")),
        placements=tuple(_served_placement(p) for p in live_placements()),
        neurons={neuron.pk: _served_neuron(neuron) for neuron in neurons},
        verdicts=_verdicts(now),
    )


def _failures(now: datetime) -> dict[int, LoadFailureView]:
    """The newest failed load of each model on a neuron that still cools down."""
    pairs = set(Cooldown.objects.filter(until__gt=now).values_list("profile_id", "neuron_id"))
    if not pairs:
        return {}
    # What failed before that is no reason for a pause that lasts until now.
    longest_pause = timedelta(seconds=LONGEST_COOLDOWN_SECONDS)
    failed = Placement.objects.filter(
        phase=PlacementPhase.FAILED,
        profile_id__in={profile_id for profile_id, _ in pairs},
        ended_at__gt=now - longest_pause,
    )
    newest = {}
    for placement in failed.select_related("neuron").order_by("ended_at"):
        if (placement.profile_id, placement.neuron_id) in pairs:
            newest[placement.profile_id] = LoadFailureView(
                placement.error_code,
                placement.error,
                placement.ended_at or placement.phase_since,
                placement.neuron.name,
            )
    return newest


def _verdicts(now: datetime) -> dict[str, Verdict]:
    """What requests wait for. An operator's wish for one neuron says nothing of the others."""
    demands = Demand.objects.filter(
        expires_at__gt=now, verdict__isnull=False, on_neuron__isnull=True
    )
    return {
        demand.profile.model_id: Verdict(
            kind=demand.verdict["kind"],
            refusals=refusals_from_rows(demand.verdict["refusals"]),
            since=demand.since,
        )
        for demand in demands.select_related("profile").order_by("-since")
        if demand.verdict is not None
    }


def _served_neuron(neuron: Neuron) -> ServedNeuron:
    phase = NeuronPhase(neuron.phase)
    return ServedNeuron(
        id=neuron.pk,
        name=neuron.name,
        endpoint=neuron.endpoint,
        token=decrypt_token(neuron.token_encrypted),
        phase=phase,
        dispatchable=neuron.enabled and phase is NeuronPhase.HEALTHY and not neuron.draining,
    )


def _served_placement(placement: Placement) -> ServedPlacement:
    return ServedPlacement(
        id=placement.pk,
        model_id=placement.profile.model_id,
        neuron_id=placement.neuron_id,
        phase=PlacementPhase(placement.phase),
        desired_present=placement.desired == Desired.PRESENT,
        device_indexes=tuple(placement.device_indexes),
        memory_bytes=placement.memory_bytes,
        in_flight=placement.in_flight,
        queued=placement.queued,
        stage=placement.stage,
        percent=placement.percent,
        requested_at=placement.requested_at,
        ready_at=placement.ready_at,
        servable=placement.servable,
        unservable_reason=placement.unservable_reason,
    )


def _served_model(
    profile: ModelProfile,
    neurons: tuple[NeuronView, ...],
    failure: LoadFailureView | None,
) -> ServedModel:
    return ServedModel(
        model_id=profile.model_id,
        enabled=profile.enabled and not profile.quarantined,
        harness=profile.harness,
        capabilities=tuple(profile.capabilities),
        limit_context=profile.limit_context,
        limit_input=profile.limit_input,
        limit_output=profile.limit_output,
        tool_call=profile.tool_call,
        reasoning=profile.reasoning,
        cost_input=profile.cost_input,
        cost_output=profile.cost_output,
        load_seconds=profile.load_seconds,
        feasible_on=feasible_neurons(profile_view(profile), neurons),
        created_at=profile.created_at,
        failure=failure,
        source=profile.source,
        revision=profile.revision,
        quant=profile.quant,
    )
