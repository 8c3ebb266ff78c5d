"""Notes when placements last served a request: what the least recently used order is made of."""

from collections.abc import Mapping
from datetime import datetime

from django.db import transaction
from django.db.models import Q

from fleet.models import Placement


def note_used(last_used_by_placement: Mapping[int, datetime]) -> None:
    """Move `last_used_at` forward, never back: several gateways report in any order."""
    with transaction.atomic():
        for placement_id, used_at in sorted(last_used_by_placement.items()):
            is_older = Q(last_used_at__isnull=True) | Q(last_used_at__lt=used_at)
            Placement.objects.filter(is_older, pk=placement_id).update(last_used_at=used_at)
