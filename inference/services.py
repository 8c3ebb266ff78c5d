"""Writes of request records. One batch at a time; nothing here is called by a request itself."""

from collections.abc import Sequence
from datetime import datetime

from django.db import models, transaction

from inference.models import RequestRecord

BATCH_ROWS = 500
PRUNE_ROWS = 5000


def store_records(records: Sequence[RequestRecord]) -> None:
    """Insert a batch: all of it or nothing."""
    for record in records:
        _make_storable(record)
    with transaction.atomic():
        RequestRecord.objects.bulk_create(records, batch_size=BATCH_ROWS)


def prune(older_than: datetime) -> int:
    """Delete the records that arrived before; return how many."""
    num_deleted = 0
    while True:
        # In portions: one long transaction would keep the gateways' inserts waiting.
        oldest = RequestRecord.objects.filter(at__lt=older_than).order_by("at")
        ids = list(oldest.values_list("pk", flat=True)[:PRUNE_ROWS])
        if not ids:
            return num_deleted
        num_deleted += RequestRecord.objects.filter(pk__in=ids).delete()[0]


_TEXT_LENGTHS = {
    field.attname: field.max_length
    for field in RequestRecord._meta.concrete_fields
    if isinstance(field, models.CharField)
}


def _make_storable(record: RequestRecord) -> None:
    """Clients send what they like; PostgreSQL takes neither NUL nor a text that is too long.

    A key left from an insert that was rolled back may be another row's by now.
    """
    record.pk = None
    for name, max_length in _TEXT_LENGTHS.items():
        text = getattr(record, name).replace("\0", "")
        setattr(record, name, text[:max_length])
