"""`manage.py serve`: the gateway and the admin over HTTP, on uvicorn."""

import os
from argparse import ArgumentParser
from typing import Any

import uvicorn
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from cortex_site.checks import OPEN_HINT, OPEN_TO_THE_NETWORK, is_loopback
from cortex_site.http_guard import GuardedProtocol

GRACEFUL_SECONDS = 5


class Command(BaseCommand):
    help = "Serve the API and the admin."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default=settings.CORTEX_HOST)
        parser.add_argument("--port", type=int, default=settings.CORTEX_PORT)
        parser.add_argument(
            "--role",
            choices=("all", "gateway", "admin"),
            default=settings.CORTEX_SERVE_ROLE,
            help="gateway: only /v1 and /health; admin: everything else; all: both",
        )
        parser.add_argument("--workers", type=int, default=1, help="processes that share the port")

    def handle(self, *args: Any, **options: Any) -> None:
        host, port = options["host"], options["port"]
        if not (is_loopback(host) or settings.CORTEX_ALLOW_ANONYMOUS):
            raise CommandError(f"{OPEN_TO_THE_NETWORK.format(host=host)} {OPEN_HINT}")
        # Read by the application module, which uvicorn imports here or in its workers.
        os.environ["CORTEX_SERVE_ROLE"] = settings.CORTEX_SERVE_ROLE = options["role"]
        uvicorn.run(
            "cortex_site.asgi:application",
            host=host,
            port=port,
            workers=options["workers"] if options["workers"] > 1 else None,
            http=GuardedProtocol,
            loop="uvloop",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=GRACEFUL_SECONDS,
        )
