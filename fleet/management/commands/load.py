"""`manage.py load MODEL [--on NEURON] [--wait]`: an operator wants a model loaded."""

import json
from datetime import datetime
from time import monotonic, sleep
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from fleet import services
from fleet.selectors import LoadState, load_state
from fleet.wording import in_words

_LOOK_SECONDS = 0.25
_BAR_CELLS = 30


class Command(BaseCommand):
    help = "Load a model, on a certain neuron or where it fits best."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("model")
        parser.add_argument("--on", metavar="NEURON", help="Load it there and nowhere else.")
        parser.add_argument("--wait", action="store_true", help="Return when it is ready.")
        parser.add_argument(
            "--timeout", type=float, default=600.0, metavar="SECONDS", help="Of --wait."
        )
        parser.add_argument("--json", action="store_true", help="For programs.")

    def handle(self, *args: Any, **options: Any) -> None:
        now = timezone.now()
        try:
            profile = services.request_load(options["model"], options["on"], now, "command line")
        except services.FleetError as error:
            raise CommandError(str(error)) from None
        model_id = profile.model_id
        if not options["wait"]:
            self._tell(options, f"Asked for {model_id}.", {"model": model_id, "phase": "requested"})
            return
        state = self._wait(model_id, now, options)
        where = f"{model_id} is ready on {state.neuron}."
        self._tell(
            options, where, {"model": model_id, "phase": state.phase, "neuron": state.neuron}
        )

    def _wait(self, model_id: str, asked_at: datetime, options: dict[str, Any]) -> LoadState:
        deadline = monotonic() + options["timeout"]
        while True:
            state = load_state(model_id, options["on"], asked_at)
            self._show(model_id, state)
            if state.is_ready:
                return state
            if state.is_over:
                raise CommandError(f"{model_id} was not loaded: {state.why}")
            if monotonic() >= deadline:
                raise CommandError(f"{model_id} is not ready after {options['timeout']:g} s.")
            sleep(_LOOK_SECONDS)

    def _show(self, model_id: str, state: LoadState) -> None:
        if not self.stderr.isatty():
            return
        filled = round(_BAR_CELLS * state.percent / 100)
        bar = "#" * filled + "." * (_BAR_CELLS - filled)
        doing = in_words(state.refusals) if state.refusals else state.stage or state.phase
        line = f"\r{model_id} [{bar}] {state.percent:3.0f} % {doing}"
        self.stderr.write(f"{line[:150]:<150}", ending="\n" if state.is_ready else "")

    def _tell(self, options: dict[str, Any], text: str, data: dict[str, Any]) -> None:
        self.stdout.write(json.dumps(data) if options["json"] else text)
