"""`manage.py metrics`: Prometheus' view of all processes of this host and of the fleet."""

import threading
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import close_old_connections
from django.utils import timezone
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

from cortex_site.fleet_metrics import FleetCollector
from fleet.planner.snapshot import FleetSnapshot
from fleet.selectors import fleet_snapshot


class Command(BaseCommand):
    help = "Serve /metrics. A process of its own: a scrape would hold up the gateway's streams."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default=settings.CORTEX_METRICS_HOST)
        parser.add_argument("--port", type=int, default=settings.CORTEX_METRICS_PORT)

    def handle(self, *args: Any, **options: Any) -> None:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        registry.register(FleetCollector(_read_fleet))
        host, port = options["host"], options["port"]
        try:
            _, thread = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            raise CommandError(f"Cannot listen on {host}:{port}: {error.strerror}.") from None
        self.stdout.write(f"Prometheus metrics on http://{host}:{port}/metrics")
        self.stdout.flush()
        _wait_for(thread)


def _read_fleet() -> FleetSnapshot:
    """Called in the server's threads, which Django does not know."""
    close_old_connections()
    try:
        return fleet_snapshot(timezone.now())
    finally:
        close_old_connections()


def _wait_for(thread: threading.Thread) -> None:
    while thread.is_alive():
        thread.join(timeout=3600)
