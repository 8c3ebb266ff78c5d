"""Writes of request records. One batch at a time; nothing here is called by a request itself."""

from collections.abc import Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any

from django.db import connection, models, transaction

from inference.models import RequestRecord

PRUNE_ROWS = 5000


_FIELDS = [field for field in RequestRecord._meta.concrete_fields if not field.primary_key]
_VALUES = attrgetter(*(field.attname for field in _FIELDS))
_AT = [field.name for field in _FIELDS].index("at")
_INSERT = "INSERT INTO {} ({}) VALUES ({})".format(
    RequestRecord._meta.db_table,
    ", ".join(f'"{field.column}"' for field in _FIELDS),
    ", ".join(["%s"] * len(_FIELDS)),
)


def store_records(records: Sequence[RequestRecord]) -> None:
    """Insert a batch: all of it or nothing.

    One statement for many rows of plain values: `bulk_create` would build its SQL anew each time,
    field by field, and the gateway's event loop would wait for the interpreter meanwhile.
    """
    rows = [_row(record) for record in records]
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.executemany(_INSERT, rows)


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


_TEXTS = [
    (place, field.max_length)
    for place, field in enumerate(_FIELDS)
    if isinstance(field, models.CharField)
]


def _row(record: RequestRecord) -> list[Any]:
    """Clients send what they like; PostgreSQL takes neither NUL nor a text that is too long."""
    row = list(_VALUES(record))
    row[_AT] = connection.ops.adapt_datetimefield_value(record.at)
    for place, max_length in _TEXTS:
        row[place] = row[place].replace("\0", "")[:max_length]
    return row
