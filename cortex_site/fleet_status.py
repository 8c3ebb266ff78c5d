"""What `manage.py status` shows: the fleet and the latest requests, as plain data and as text."""

from datetime import datetime
from typing import Any

from fleet import selectors as fleet_selectors
from fleet.planner.snapshot import FleetSnapshot
from fleet.wording import in_columns, in_mb
from inference import selectors as inference_selectors
from inference.models import RequestRecord


def read_status(now: datetime, num_requests: int) -> dict[str, Any]:
    """Neurons with their devices, placements, who waits, and the newest requests first."""
    snapshot = fleet_selectors.fleet_snapshot(now)
    return {
        "at": now.timestamp(),
        "neurons": [
            {
                "name": neuron.name,
                "phase": neuron.phase,
                "cordoned": neuron.cordoned,
                "draining": neuron.draining,
                "devices": [
                    {
                        "index": device.index,
                        "total_bytes": device.total_bytes,
                        "free_bytes": device.free_bytes,
                        "usable": device.usable,
                    }
                    for device in neuron.devices
                ],
            }
            for neuron in snapshot.neurons
        ],
        "placements": _placements(snapshot),
        "waiting": [
            {
                "model": waiting.model_id,
                "num_waiting": waiting.num_waiting,
                "since": waiting.since.timestamp(),
            }
            for waiting in snapshot.waiting
        ],
        "requests": [
            _request(record) for record in inference_selectors.recent_requests(num_requests)
        ],
    }


def _placements(snapshot: FleetSnapshot) -> list[dict[str, Any]]:
    names = {neuron.id: neuron.name for neuron in snapshot.neurons}
    return [
        {
            "id": placement.id,
            "model": placement.model_id,
            "neuron": names.get(placement.neuron_id, ""),
            "devices": list(placement.device_indexes),
            "phase": placement.phase,
            "memory_bytes": placement.memory_bytes,
            "in_flight": placement.in_flight,
            "queued": placement.queued,
            "last_used_at": placement.last_used_at and placement.last_used_at.timestamp(),
        }
        for placement in snapshot.placements
        if placement.phase != "stopped"
    ]


def _request(record: RequestRecord) -> dict[str, Any]:
    return {
        "request_id": record.request_id,
        "at": record.at.timestamp(),
        "model": record.model or record.requested_model,
        "neuron": record.neuron,
        "status": record.status,
        "streaming": record.streaming,
        "cold_start": record.cold_start,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "completion_tokens": record.completion_tokens,
        "ttft_seconds": record.ttft_seconds,
        "tokens_per_second": record.tokens_per_second,
        "latency_seconds": record.latency_seconds,
        "finish_reason": record.finish_reason,
        "error_code": record.error_code,
    }


# --- as text -----------------------------------------------------------------------------------


def status_in_words(status: dict[str, Any]) -> str:
    """The same for people, in up to four tables."""
    now = status["at"]
    parts = [
        _table("Neurons", ("name", "phase", "devices"), map(_neuron_row, status["neurons"])),
        _table(
            "Placements",
            ("model", "where", "phase", "memory", "in flight", "queued", "last used"),
            (_placement_row(row, now) for row in status["placements"]),
        ),
        _table(
            "Waiting",
            ("model", "requests", "for"),
            ((w["model"], w["num_waiting"], _age(w["since"], now)) for w in status["waiting"]),
        ),
        _table(
            "Requests",
            ("when", "model", "neuron", "status", "in", "out", "ttft", "tok/s", "latency", ""),
            (_request_row(row, now) for row in status["requests"]),
        ),
    ]
    return "\n\n".join(part for part in parts if part) or "Nothing here yet."


def _table(title: str, headings: tuple[str, ...], rows: Any) -> str:
    cells = list(rows)
    return f"{title}\n{in_columns(headings, cells)}" if cells else ""


def _neuron_row(neuron: dict[str, Any]) -> tuple[str, str, str]:
    marks = [neuron["phase"], *(mark for mark in ("cordoned", "draining") if neuron[mark])]
    devices = [
        f"{device['index']}: {in_mb(device['free_bytes'])} of {in_mb(device['total_bytes'])} free"
        + ("" if device["usable"] else " (not usable)")
        for device in neuron["devices"]
    ]
    return neuron["name"], ", ".join(marks), "; ".join(devices) or "none known"


def _placement_row(placement: dict[str, Any], now: float) -> tuple[object, ...]:
    devices = ", ".join(map(str, placement["devices"]))
    return (
        placement["model"],
        f"{placement['neuron']} #{devices}",
        placement["phase"],
        in_mb(placement["memory_bytes"]),
        placement["in_flight"],
        placement["queued"],
        _age(placement["last_used_at"], now),
    )


def _request_row(request: dict[str, Any], now: float) -> tuple[object, ...]:
    return (
        _age(request["at"], now),
        request["model"],
        request["neuron"] or "-",
        request["status"],
        _or_dash(request["prompt_tokens"]),
        _or_dash(request["completion_tokens"]),
        _seconds(request["ttft_seconds"]),
        _or_dash(request["tokens_per_second"], ".0f"),
        _seconds(request["latency_seconds"]),
        "cold start" if request["cold_start"] else request["error_code"],
    )


def _or_dash(value: float | None, form: str = "d") -> str:
    return "-" if value is None else format(value, form)


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _age(moment: float | None, now: float) -> str:
    if moment is None:
        return "never"
    seconds = max(0, round(now - moment))
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"
