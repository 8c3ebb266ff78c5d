"""Reads of request records, for commands and pages. Nothing on a request's path comes here."""

from dataclasses import dataclass
from datetime import datetime

from django.db.models import Count, Q

from inference.models import RequestRecord


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """Of the requests that arrived since a moment."""

    num_requests: int
    num_errors: int
    """Status 500 and above."""
    num_left: int
    """Whose client left."""
    num_cold_starts: int


def recent_requests(limit: int) -> list[RequestRecord]:
    """The newest records, newest first."""
    return list(RequestRecord.objects.all()[:limit])


def request_counts(since: datetime) -> RequestCounts:
    counts = RequestRecord.objects.filter(at__gte=since).aggregate(
        num_requests=Count("pk"),
        num_errors=Count("pk", filter=Q(status__gte=500)),
        num_left=Count("pk", filter=Q(status=499)),
        num_cold_starts=Count("pk", filter=Q(cold_start=True)),
    )
    return RequestCounts(**counts)
