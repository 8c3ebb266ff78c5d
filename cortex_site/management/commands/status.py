"""`manage.py status`: neurons, placements, who waits, and the latest requests."""

import json
import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from cortex_site.fleet_status import read_status, status_in_words

CLEAR_SCREEN = "\x1b[H\x1b[2J"


class Command(BaseCommand):
    help = "Show neurons, placements and the latest requests."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--requests", type=int, default=10, help="how many of the latest")
        parser.add_argument("--json", action="store_true", help="for programs")
        parser.add_argument(
            "--watch",
            nargs="?",
            type=float,
            const=2.0,
            metavar="SECONDS",
            help="show it again and again",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["requests"] < 0 or (options["watch"] is not None and options["watch"] <= 0):
            raise CommandError("--requests and --watch take positive numbers.")
        try:
            while True:
                self._show(options)
                if options["watch"] is None:
                    return
                time.sleep(options["watch"])
        except KeyboardInterrupt:
            return

    def _show(self, options: dict[str, Any]) -> None:
        status = read_status(timezone.now(), options["requests"])
        if options["json"]:
            self.stdout.write(json.dumps(status))
            return
        clear = CLEAR_SCREEN if options["watch"] is not None and self.stdout.isatty() else ""
        self.stdout.write(clear + status_in_words(status))
