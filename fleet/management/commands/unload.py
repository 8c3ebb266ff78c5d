"""`manage.py unload MODEL [--on NEURON]`: an operator wants a model gone."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from fleet import services


class Command(BaseCommand):
    help = "Unload a model everywhere, or from one neuron. Running requests may finish."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("model")
        parser.add_argument("--on", metavar="NEURON", help="From there only.")
        parser.add_argument("--json", action="store_true", help="For programs.")

    def handle(self, *args: Any, **options: Any) -> None:
        model_id = options["model"]
        try:
            number = services.request_unload(
                model_id, options["on"], timezone.now(), "command line"
            )
        except services.FleetError as error:
            raise CommandError(str(error)) from None
        where = f" on {options['on']}" if options["on"] else ""
        if number == 0:
            raise CommandError(f"{model_id} is not loaded{where}.")
        told = f"Asked to unload {model_id}{where}: {number} placement(s)."
        data = {"model": model_id, "placements": number}
        self.stdout.write(json.dumps(data) if options["json"] else told)
