"""`manage.py explain MODEL`: where a model would go now, and why not elsewhere."""

import json
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from fleet import selectors, services
from fleet.planner.actions import Explanation
from fleet.planner.reconcile import explain
from fleet.planner.snapshot import FleetSnapshot
from fleet.wording import in_mb, placement_in_words


class Command(BaseCommand):
    help = "Say where a model would be placed now, and why not on the other neurons."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("model")
        parser.add_argument("--json", action="store_true", help="For programs.")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            model_id = services.find_profile(options["model"]).model_id
        except services.FleetError as error:
            raise CommandError(str(error)) from None
        snapshot = selectors.fleet_snapshot(timezone.now())
        explanation = explain(snapshot, model_id)
        if options["json"]:
            self.stdout.write(json.dumps(asdict(explanation)))
        else:
            self.stdout.write("\n".join(_lines(explanation, snapshot)))


def _lines(explanation: Explanation, snapshot: FleetSnapshot) -> list[str]:
    lines = [f"{explanation.model_id}"]
    lines += [f"  {fact}: {value}" for fact, value in explanation.facts.items()]
    lines.append(f"  needs: {in_mb(explanation.needed_bytes)} ({explanation.memory_source})")
    if explanation.chosen_neuron is None:
        lines.append("  another copy: cannot be placed now")
    else:
        devices = ", ".join(map(str, explanation.device_indexes))
        lines.append(f"  another copy: on {explanation.chosen_neuron}, device {devices}")
    for victim in explanation.victims:
        lines.append(f"  displaces: {placement_in_words(victim, snapshot)}")
    for refusal in explanation.refusals:
        detail = f" - {refusal.detail}" if refusal.detail else ""
        lines.append(f"  not {refusal.neuron}: {refusal.code}{detail}")
    return lines
