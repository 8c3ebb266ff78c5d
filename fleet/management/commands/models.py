"""`manage.py models`: the catalogue, and where each model is."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.utils import timezone

from fleet.selectors import ServedModel, ServingView, serving_view
from fleet.wording import in_columns, in_mb


class Command(BaseCommand):
    help = "List the catalogue: where each model is loaded, and where it could be."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="For programs.")

    def handle(self, *args: Any, **options: Any) -> None:
        view = serving_view(timezone.now())
        entries = [_entry(model, view) for model in view.models.values()]
        if options["json"]:
            self.stdout.write(json.dumps(entries, indent=2))
        elif not entries:
            self.stdout.write("The catalogue is empty.")
        else:
            self.stdout.write(
                in_columns(("model", "loaded", "memory", "feasible on"), map(_row, entries))
            )


def _entry(model: ServedModel, view: ServingView) -> dict[str, Any]:
    return {
        "id": model.model_id,
        "aliases": sorted(
            name for name, target in view.aliases.items() if target == model.model_id
        ),
        "enabled": model.enabled,
        "harness": model.harness,
        "placements": [
            {
                "neuron": view.neurons[placement.neuron_id].name,
                "devices": list(placement.device_indexes),
                "phase": placement.phase,
                "memory_bytes": placement.memory_bytes,
                "in_flight": placement.in_flight,
                "queued": placement.queued,
            }
            for placement in view.placements
            if placement.model_id == model.model_id
        ],
        "feasible_on": list(model.feasible_on),
    }


def _row(entry: dict[str, Any]) -> tuple[str, str, str, str]:
    placements = entry["placements"]
    name = entry["id"] if entry["enabled"] else f"{entry['id']} (disabled)"
    return (
        name,
        ", ".join(f"{p['phase']} on {p['neuron']}" for p in placements) or "-",
        in_mb(sum(p["memory_bytes"] for p in placements)) if placements else "-",
        ", ".join(entry["feasible_on"]) or "no neuron",
    )
