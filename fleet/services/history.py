"""Forgets what has ended: events and placements that nothing refers to any more."""

from datetime import datetime

from django.db.models import QuerySet

from fleet.models import FleetEvent, Placement
from fleet.planner.phases import ENDED

PRUNE_ROWS = 5000


def prune(older_than: datetime) -> tuple[int, int]:
    """Delete events and ended placements from before; return how many of each."""
    events = FleetEvent.objects.filter(at__lt=older_than)
    placements = Placement.objects.filter(phase__in=sorted(ENDED), ended_at__lt=older_than)
    return _delete(events), _delete(placements)


def _delete(rows: "QuerySet[FleetEvent] | QuerySet[Placement]") -> int:
    num_deleted = 0
    # In portions: one long transaction would keep every other writer waiting.
    while ids := list(rows.order_by("pk").values_list("pk", flat=True)[:PRUNE_ROWS]):
        num_deleted += rows.model.objects.filter(pk__in=ids).delete()[0]
    return num_deleted
