"""`manage.py add_neuron NAME URL`: make a neuron part of the fleet, once it has answered."""

import json
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from fleet import services
from fleet.neuron_client import NeuronAddress, NeuronCalls, NeuronError
from fleet.observation import Report
from fleet.services.observe import record_report


class Command(BaseCommand):
    help = "Add a neuron, or give one a new address. It is asked what it has before."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("url", help="For example http://beast.internal:13131")
        parser.add_argument(
            "--token-file", metavar="FILE", help="Holds the token the neuron expects."
        )
        parser.add_argument("--force", action="store_true", help="Add it though it is silent.")
        parser.add_argument("--json", action="store_true", help="For programs.")

    def handle(self, *args: Any, **options: Any) -> None:
        name, url = options["name"], options["url"].rstrip("/")
        token = _read_token(options["token_file"])
        now = timezone.now()
        answer = _ask(NeuronAddress(0, name, url, token))
        if isinstance(answer, NeuronError) and not options["force"]:
            raise CommandError(f"{url} does not answer as a neuron: {answer}. Not added.")
        try:
            neuron = services.add_neuron(name, url, token, now, "command line")
        except services.InvalidFleetChange as error:
            raise CommandError(str(error)) from None
        if isinstance(answer, NeuronError):
            self._tell(options, f"{name} added, though it is silent: {answer}", {"name": name})
            return
        record_report(neuron.pk, answer, timezone.now())
        self._tell(options, _in_words(name, answer), _as_data(name, answer))

    def _tell(self, options: dict[str, Any], text: str, data: dict[str, Any]) -> None:
        self.stdout.write(json.dumps(data) if options["json"] else text)


def _read_token(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        token = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"The token file cannot be read: {error}") from None
    if not token:
        raise CommandError(f"The token file {path} is empty.")
    return token


def _ask(address: NeuronAddress) -> Report | NeuronError:
    with NeuronCalls() as calls:
        calls.start(address, calls.client.poll(address, timezone.now()))
        ((_, answer),) = calls.finished(timeout_seconds=10)
    return answer  # type: ignore[no-any-return]


def _in_words(name: str, report: Report) -> str:
    discovery = report.discovery
    if discovery is None:
        return f"{name} added."
    lines = [f"{name} added: {discovery.hostname}, {', '.join(discovery.harnesses)}"]
    lines += [
        f"  device {device.index}: {device.name} ({device.kind}), {device.vram_total_mb:,} MB"
        for device in discovery.devices
    ]
    lines += [f"  has {info.id}: {info.phase}" for info in report.models]
    return "\n".join(lines)


def _as_data(name: str, report: Report) -> dict[str, Any]:
    devices = report.discovery.devices if report.discovery else ()
    return {
        "name": name,
        "devices": [
            {"index": d.index, "name": d.name, "kind": d.kind, "total_mb": d.vram_total_mb}
            for d in devices
        ],
        "models": [{"id": info.id, "phase": info.phase} for info in report.models],
    }
