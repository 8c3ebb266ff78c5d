"""Deletes what has grown older than the operator wants to keep. It decides nothing else."""

from dataclasses import dataclass
from datetime import timedelta

from django.conf import settings
from django.utils import timezone

import inference.services
from fleet.services import history


@dataclass(frozen=True, slots=True)
class Pruned:
    num_records: int
    num_events: int
    num_placements: int


def prune(records_days: float | None = None, events_days: float | None = None) -> Pruned:
    """Delete request records, and events and ended placements, older than so many days."""
    now = timezone.now()
    keep_records = timedelta(days=records_days or settings.CORTEX_KEEP_RECORDS_DAYS)
    keep_events = timedelta(days=events_days or settings.CORTEX_KEEP_EVENTS_DAYS)
    num_events, num_placements = history.prune(now - keep_events)
    return Pruned(inference.services.prune(now - keep_records), num_events, num_placements)
