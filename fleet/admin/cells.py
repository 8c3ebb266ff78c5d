"""What single cells of the fleet's admin pages show, and how their actions report. No queries."""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from django.contrib import messages
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from fleet.models import Device, Neuron
from fleet.planner.phases import NeuronPhase, PlacementPhase
from fleet.services import FleetError

PLACEMENT_COLOURS: Mapping[str, str] = {
    PlacementPhase.PENDING: "info",
    PlacementPhase.LOADING: "info",
    PlacementPhase.WARMING: "info",
    PlacementPhase.READY: "success",
    PlacementPhase.RECOVERING: "warning",
    PlacementPhase.DRAINING: "warning",
    PlacementPhase.UNLOADING: "warning",
    PlacementPhase.FAILED: "danger",
    PlacementPhase.LOST: "danger",
}
NEURON_COLOURS: Mapping[str, str] = {
    NeuronPhase.HEALTHY: "success",
    NeuronPhase.UNHEALTHY: "warning",
    NeuronPhase.LOST: "danger",
    NeuronPhase.UNKNOWN: "info",
    "disabled": "danger",
    "cordoned": "warning",
    "draining": "warning",
}

_GB = 2**30
_BAR = (
    '<div style="display:flex;align-items:center;gap:.5rem;min-width:13rem">'
    '<div style="flex:1;height:.5rem;border-radius:.25rem;overflow:hidden;'
    'background:color-mix(in srgb, currentColor 15%, transparent)">'
    '<div style="width:{percent}%;height:100%;background:{colour}"></div></div>'
    '<span style="white-space:nowrap;font-variant-numeric:tabular-nums">{text}</span></div>'
)
_CALM, _FULL, _TROUBLED = "#6366f1", "#f59e0b", "#ef4444"
_FULL_PERCENT = 90


def bar(percent: float, text: str, colour: str = _CALM) -> SafeString:
    shown = f"{max(0.0, min(100.0, percent)):.0f}"
    return format_html(_BAR, percent=shown, colour=colour, text=text)


def memory_bar(device: Device) -> SafeString:
    percent = 100 * device.used_bytes / device.total_bytes if device.total_bytes else 0.0
    colour = _FULL if percent >= _FULL_PERCENT else _CALM
    text = f"{device.used_bytes / _GB:.1f} / {device.total_bytes / _GB:.1f} GB"
    if device.trouble:
        return bar(percent, f"{text} · {device.trouble}", _TROUBLED)
    return bar(percent, text, colour)


def memory_bars(devices: Iterable[Device]) -> SafeString | str:
    return format_html_join("", "{}", ((memory_bar(device),) for device in devices)) or "–"


def neuron_state(neuron: Neuron) -> str:
    """What an operator should see first: what was switched off, before how it is."""
    if not neuron.enabled:
        return "disabled"
    if neuron.draining:
        return "draining"
    if neuron.cordoned and neuron.phase == NeuronPhase.HEALTHY:
        return "cordoned"
    return neuron.phase


def in_gb(num_bytes: int | None) -> str:
    return "–" if num_bytes is None else f"{num_bytes / _GB:.2f} GB"


def ago(moment: datetime | None) -> str:
    """How long ago, in the largest unit that is whole."""
    if moment is None:
        return "never"
    seconds = max(0, int((timezone.now() - moment).total_seconds()))
    for unit, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds // unit} {name} ago"
    return f"{seconds} s ago"


def do_for_each(
    request: HttpRequest, rows: Iterable[Any], act: Callable[[Any], object], done: str
) -> None:
    """Run a service for each row, and tell for which of them it changed something."""
    changed: list[str] = []
    unchanged: list[str] = []
    for row in rows:
        try:
            (changed if act(row) else unchanged).append(str(row))
        except FleetError as error:
            messages.error(request, str(error))
    if changed:
        messages.success(request, f"{done}: {', '.join(changed)}.")
    if unchanged:
        messages.info(request, f"Nothing to do for {', '.join(unchanged)}.")
