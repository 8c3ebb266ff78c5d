"""`manage.py reconcile [--dry-run]`: poll, plan, and do it, or only say what would be done."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from fleet import controller, selectors, watch
from fleet.neuron_client import NeuronCalls
from fleet.planner.actions import Action
from fleet.wording import describe_plan


class Command(BaseCommand):
    help = "Poll every neuron and make one pass, as the worker does all the time."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="Change nothing, say the plan.")
        parser.add_argument("--json", action="store_true", help="For programs.")

    def handle(self, *args: Any, **options: Any) -> None:
        snapshot = selectors.fleet_snapshot(timezone.now())
        actions = controller.preview(timezone.now()) if options["dry_run"] else _make_pass()
        lines = describe_plan(actions, snapshot)
        if options["json"]:
            self.stdout.write(json.dumps({"done": not options["dry_run"], "plan": lines}))
        else:
            self.stdout.write("\n".join(lines) or "Nothing to do.")


def _make_pass() -> tuple[Action, ...]:
    with NeuronCalls() as calls:
        watch.poll_once(calls, timezone.now)
        actions = controller.run_once(calls, timezone.now)
    if actions is None:
        raise CommandError("A worker is making a pass right now; it sees everything there is.")
    return actions
