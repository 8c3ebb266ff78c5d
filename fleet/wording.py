"""A plan and its reasons in an operator's words. It knows values only, no rows."""

from collections.abc import Iterable
from typing import assert_never

from fleet.planner.actions import Action, Fail, Hold, Load, MarkLost, Refusal, Refuse, Unload
from fleet.planner.snapshot import FleetSnapshot

_MB = 2**20


def describe_plan(actions: Iterable[Action], snapshot: FleetSnapshot) -> list[str]:
    return [describe_action(action, snapshot) for action in actions]


def describe_action(action: Action, snapshot: FleetSnapshot) -> str:
    match action:
        case Load():
            return _load(action, snapshot)
        case Unload():
            reason = f"{action.reason}: {action.detail}" if action.detail else str(action.reason)
            newcomer = f" for {action.for_model_id}" if action.for_model_id else ""
            return (
                f"unload {placement_in_words(action.placement_id, snapshot)}{newcomer} ({reason})"
            )
        case Hold(model_id, refusals):
            return f"wait with {model_id}: {in_words(refusals)}"
        case Refuse(model_id, refusals):
            return f"refuse {model_id}: {in_words(refusals)}"
        case Fail(placement_id, reason):
            return f"give up {placement_in_words(placement_id, snapshot)}: {reason}"
        case MarkLost(placement_id, reason):
            return f"count {placement_in_words(placement_id, snapshot)} as lost: {reason}"
        case _:
            assert_never(action)


def in_words(refusals: Iterable[Refusal]) -> str:
    told = [f"{r.neuron}: {r.code}" + (f" ({r.detail})" if r.detail else "") for r in refusals]
    return "; ".join(told) or "there is no neuron"


def in_mb(num_bytes: int) -> str:
    return f"{num_bytes / _MB:,.0f} MB"


def in_columns(headings: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Set a table in columns as wide as their longest cell."""
    table = [[str(heading).upper() for heading in headings]]
    table += [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )


def _load(action: Load, snapshot: FleetSnapshot) -> str:
    neuron = snapshot.neuron(action.neuron_id)
    where = neuron.name if neuron else f"neuron {action.neuron_id}"
    devices = ", ".join(map(str, action.device_indexes))
    memory = f"{in_mb(action.memory_bytes)}, {action.memory_source}"
    return f"load {action.model_id} on {where}, device {devices} ({memory}): {action.reason}"


def placement_in_words(placement_id: int, snapshot: FleetSnapshot) -> str:
    for placement in snapshot.placements:
        if placement.id == placement_id:
            neuron = snapshot.neuron(placement.neuron_id)
            where = neuron.name if neuron else f"neuron {placement.neuron_id}"
            return f"{placement.model_id} on {where}"
    return f"placement {placement_id}"
