"""What the gateway says of models and neurons: `/v1/models` and `/health`, from one fleet view.

Pure functions of the view. They cost no query and ask no neuron.
"""

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl

from fleet.planner.phases import PlacementPhase
from fleet.selectors import ServedModel, ServedPlacement, ServingView
from inference.wire import anthropic

_MB = 2**20

# The phase of a model is that of its placement which is closest to serving.
_NEAREST_FIRST = (
    PlacementPhase.READY,
    PlacementPhase.WARMING,
    PlacementPhase.LOADING,
    PlacementPhase.PENDING,
    PlacementPhase.RECOVERING,
    PlacementPhase.DRAINING,
    PlacementPhase.UNLOADING,
    PlacementPhase.LOST,
)


def list_models(view: ServingView) -> dict[str, Any]:
    """Return OpenAI's list, models first, then aliases."""
    return {"object": "list", "data": [_entry(view, model, name) for model, name in _named(view)]}


def find_entry(view: ServingView, name: str) -> dict[str, Any] | None:
    found = _find(view, name)
    return None if found is None else _entry(view, found, name)


def anthropic_models(view: ServingView, query: str) -> dict[str, Any]:
    """Return the page of Anthropic's list that a query string asks for. Raises InvalidRequest."""
    entries = [_anthropic_entry(model, name) for model, name in _named(view)]
    return anthropic.model_list(entries, dict(parse_qsl(query)))


def find_anthropic_model(view: ServingView, name: str) -> dict[str, Any] | None:
    found = _find(view, name)
    return None if found is None else anthropic.model_body(_anthropic_entry(found, name))


def fleet_health(
    view: ServingView, is_serving: Callable[[str], bool]
) -> tuple[bool, dict[str, Any]]:
    """Return whether anything can be served, and the details.

    `ok`: all neurons answer and every model could be served. `impaired`: not all of that.
    `degraded`: no neuron can serve anything.
    """
    neurons = [
        {"name": neuron.name, "phase": neuron.phase, "dispatchable": is_serving(neuron.name)}
        for neuron in sorted(view.neurons.values(), key=lambda neuron: neuron.name)
    ]
    unservable = [
        model.model_id
        for model in _enabled_models(view)
        if not any(is_serving(name) for name in _neurons_of(view, model))
    ]
    can_serve = any(neuron["dispatchable"] for neuron in neurons)
    all_well = not unservable and all(neuron["dispatchable"] for neuron in neurons)
    status = "ok" if can_serve and all_well else "impaired" if can_serve else "degraded"
    return can_serve, {"status": status, "neurons": neurons, "unservable": unservable}


def _named(view: ServingView) -> Iterator[tuple[ServedModel, str]]:
    """Yield every name a client may use, with the model behind it."""
    for model in _enabled_models(view):
        yield model, model.model_id
    for alias, model_id in sorted(view.aliases.items()):
        behind = view.models.get(model_id)
        if behind is not None and behind.enabled and alias not in view.models:
            yield behind, alias


def _find(view: ServingView, wanted: str) -> ServedModel | None:
    return next((model for model, name in _named(view) if name == wanted), None)


def _anthropic_entry(model: ServedModel, name: str) -> anthropic.ModelEntry:
    return anthropic.ModelEntry(
        name=name,
        display_name=name,
        created_at=model.created_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        max_input_tokens=model.limit_input,
        max_output_tokens=model.limit_output,
    )


def _entry(view: ServingView, model: ServedModel, name: str) -> dict[str, Any]:
    placements = [p for p in view.placements if p.model_id == model.model_id]
    phases = {placement.phase for placement in placements}
    return {
        "id": name,
        "object": "model",
        "created": int(model.created_at.timestamp()),
        "owned_by": "cortex",
        "loaded": PlacementPhase.READY in phases,
        "phase": next((phase for phase in _NEAREST_FIRST if phase in phases), None),
        "feasible_on": list(model.feasible_on),
        "locations": [_location(view, placement) for placement in placements],
        "capabilities": list(model.capabilities),
        "limit": {
            "context": model.limit_context,
            "input": model.limit_input,
            "output": model.limit_output,
        },
        "cost": {"input": _price(model.cost_input), "output": _price(model.cost_output)},
        "tool_call": model.tool_call,
        "reasoning": model.reasoning,
        "max_model_len": model.limit_context,
    }


def _location(view: ServingView, placement: ServedPlacement) -> dict[str, Any]:
    neuron = view.neurons.get(placement.neuron_id)
    return {
        "neuron": neuron.name if neuron is not None else "",
        "phase": placement.phase,
        "devices": list(placement.device_indexes),
        "vram_mb": placement.memory_bytes // _MB,
    }


def _enabled_models(view: ServingView) -> list[ServedModel]:
    return sorted(
        (model for model in view.models.values() if model.enabled), key=lambda m: m.model_id
    )


def _neurons_of(view: ServingView, model: ServedModel) -> set[str]:
    """Where a model runs or could."""
    running = {
        view.neurons[placement.neuron_id].name
        for placement in view.placements
        if placement.model_id == model.model_id and placement.neuron_id in view.neurons
    }
    return running | set(model.feasible_on)


def _price(cost: Decimal | None) -> float | None:
    return None if cost is None else float(cost)
