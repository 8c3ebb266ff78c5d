"""`manage.py prune`: delete old request records, events and ended placements."""

import json
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from cortex_site import housekeeping


class Command(BaseCommand):
    help = "Delete what is older than you want to keep. Beat does it every hour, too."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--records-days", type=float, default=settings.CORTEX_KEEP_RECORDS_DAYS)
        parser.add_argument("--events-days", type=float, default=settings.CORTEX_KEEP_EVENTS_DAYS)
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        if min(options["records_days"], options["events_days"]) <= 0:
            raise CommandError("Keep more than 0 days.")
        pruned = housekeeping.prune(options["records_days"], options["events_days"])
        if options["json"]:
            self.stdout.write(json.dumps(asdict(pruned)))
            return
        self.stdout.write(
            f"Deleted {pruned.num_records} request records, {pruned.num_events} events and "
            f"{pruned.num_placements} ended placements."
        )
