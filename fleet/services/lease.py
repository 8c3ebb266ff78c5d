"""Leases: who may do what only one may do at a time, over all workers.

A holder that dies keeps nobody waiting for longer than its lease runs.
"""

from datetime import datetime, timedelta

from django.db import IntegrityError, transaction
from django.db.models import Q

from fleet.models import Lease


def take_lease(name: str, holder: str, now: datetime, seconds: float) -> bool:
    """Take a free lease, or prolong one's own; False if another has it."""
    expires_at = now + timedelta(seconds=seconds)
    obtainable = Lease.objects.filter(Q(holder=holder) | Q(expires_at__lte=now), name=name)
    if obtainable.update(holder=holder, expires_at=expires_at):
        return True
    if Lease.objects.filter(name=name).exists():
        return False
    try:
        with transaction.atomic():
            Lease.objects.create(name=name, holder=holder, expires_at=expires_at)
    except IntegrityError:  # another one was first
        return False
    return True


def give_lease_back(name: str, holder: str, now: datetime) -> None:
    """Free a lease, if it is still the holder's."""
    Lease.objects.filter(name=name, holder=holder).update(holder="", expires_at=now)
