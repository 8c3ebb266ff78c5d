"""Celery's shells around the watch. None outlives five seconds; a killed one loses nothing."""

from celery import shared_task

from fleet.watch import watch_fleet as run_watch


@shared_task(name="fleet.watch_fleet")
def watch_fleet() -> None:
    """The beat's: poll every neuron, then a pass; more often while something moves."""
    run_watch()


@shared_task(name="fleet.reconcile_fleet")
def reconcile_fleet() -> None:
    """Somebody's wish: a pass at once, then as above."""
    run_watch(is_hurried=True)
