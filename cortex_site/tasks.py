"""Celery tasks that concern more than one app."""

from celery import shared_task

from cortex_site import housekeeping


@shared_task(name="cortex.prune")
def prune() -> None:
    """Delete what is older than the operator wants kept."""
    housekeeping.prune()
