"""`manage.py metrics`: Prometheus' view of all processes of this host and of the fleet."""

import threading
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

from cortex_site.fleet_metrics import FleetCollector


class Command(BaseCommand):
    help = "Serve /metrics. A process of its own: a scrape would hold up the gateway's streams."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default=settings.CORTEX_METRICS_HOST)
        parser.add_argument("--port", type=int, default=settings.CORTEX_METRICS_PORT)

    def handle(self, *args: Any, **options: Any) -> None:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        registry.register(FleetCollector())
        host, port = options["host"], options["port"]
        try:
            _, thread = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            raise CommandError(f"Cannot listen on {host}:{port}: {error.strerror}.") from None
        self.stdout.write(f"Prometheus metrics on http://{host}:{port}/metrics")
        self.stdout.flush()
        _wait_for(thread)


def _wait_for(thread: threading.Thread) -> None:
    while thread.is_alive():
        thread.join(timeout=3600)
