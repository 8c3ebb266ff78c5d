"""Where things are right now: what moves, whom to poll, how far an operator's load is."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from django.db.models import Exists, OuterRef, Q, QuerySet

from fleet.models import Demand, Desired, Neuron, Placement
from fleet.planner.actions import Refusal, RefusalCode
from fleet.planner.phases import ARRIVING, LEAVING, LIVE, NeuronPhase, PlacementPhase
from fleet.wording import in_words


@dataclass(frozen=True, slots=True)
class LoadState:
    """How far an operator's load is."""

    phase: str
    neuron: str = ""
    stage: str = ""
    percent: float = 0.0
    is_over: bool = False
    why: str = ""
    refusals: tuple[Refusal, ...] = ()

    @property
    def is_ready(self) -> bool:
        return self.phase == PlacementPhase.READY


def load_state(model_id: str, neuron_name: str | None, asked_at: datetime) -> LoadState:
    """Return the best placement's state; else what the wish was answered; else why it ended."""
    placements = Placement.objects.filter(profile__model_id=model_id)
    # Without a name: the wish for any neuron.
    demands = Demand.objects.filter(profile__model_id=model_id, on_neuron__name=neuron_name)
    if neuron_name is not None:
        placements = placements.filter(neuron__name=neuron_name)
    rows = list(
        placements.filter(phase__in=sorted(ARRIVING | {PlacementPhase.READY})).select_related(
            "neuron"
        )
    )
    for placement in sorted(rows, key=lambda row: row.phase != PlacementPhase.READY):
        return LoadState(placement.phase, placement.neuron.name, placement.stage, placement.percent)
    demand = demands.first()
    if demand is not None:
        verdict = demand.verdict or {"kind": "hold", "refusals": []}
        refusals = refusals_from_rows(verdict["refusals"])
        is_over = verdict["kind"] == "refuse"
        return LoadState("waiting", is_over=is_over, why=in_words(refusals), refusals=refusals)
    failed = placements.filter(phase=PlacementPhase.FAILED, ended_at__gte=asked_at)
    newest = failed.order_by("-ended_at").first()
    why = newest.error if newest else "the wish was withdrawn or ran out"
    return LoadState("failed", is_over=True, why=why)


def live_placements() -> QuerySet[Placement]:
    return (
        Placement.objects.filter(phase__in=sorted(LIVE))
        .select_related("profile", "neuron")
        .order_by("pk")
    )


def polled_neurons() -> list[Neuron]:
    """Those in use, and those where something has yet to leave."""
    leaving = Placement.objects.filter(phase__in=sorted(LEAVING), neuron=OuterRef("pk"))
    return list(Neuron.objects.filter(Q(enabled=True) | Exists(leaving)).order_by("pk"))


def is_anything_moving(now: datetime) -> bool:
    """Whether a placement comes or goes, or a model is waited for that may yet be placed."""
    is_to_go = Q(phase=PlacementPhase.READY, desired=Desired.ABSENT)
    moving = Placement.objects.filter(Q(phase__in=sorted(ARRIVING | LEAVING)) | is_to_go)
    if moving.exclude(neuron__phase=NeuronPhase.LOST).exists():
        return True
    verdicts = Demand.objects.filter(expires_at__gt=now).values_list("verdict", flat=True)
    return any(verdict is None or verdict["kind"] == "hold" for verdict in verdicts)


def refusals_from_rows(rows: Iterable[Mapping[str, str]]) -> tuple[Refusal, ...]:
    return tuple(
        Refusal(row["neuron"], RefusalCode(row["code"]), row.get("detail", "")) for row in rows
    )
