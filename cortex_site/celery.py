"""The Celery app, and every periodic task on one screen."""

import os
from typing import Any

from celery import Celery
from celery.signals import setup_logging

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cortex_site.settings")

app = Celery("cortex")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

_HOUR_SECONDS = 3600


def _every(task: str, seconds: int) -> dict[str, Any]:
    # A tick that waited a whole period for a worker is void: the next one is due anyway.
    return {"task": task, "schedule": seconds, "options": {"expire_seconds": seconds}}


@app.on_after_configure.connect
def _schedule(sender: Celery, **_: Any) -> None:
    from django.conf import settings

    sender.conf.beat_schedule = {
        "poll the neurons and reconcile": _every("fleet.watch_fleet", settings.CORTEX_POLL_SECONDS),
        "delete old records and events": _every("cortex.prune", _HOUR_SECONDS),
    }


@setup_logging.connect
def _log_as_django_does(**_: Any) -> None:
    """Connected, so Celery leaves logging as `settings.LOGGING` has set it up."""
