"""The supervisor's state as protocol messages: version, discovery, health, models.

Functions of what is known now. None of them changes anything or waits for a device.
"""

import importlib.metadata
import platform
import time
from functools import lru_cache

from neuron_agent.devices.channel import ModelReady
from neuron_agent.devices.inventory import MEGABYTE
from neuron_agent.model_state import ModelState
from neuron_agent.protocol import (
    CachedModel,
    Discovery,
    Health,
    ModelHealth,
    ModelInfo,
    ModelLimit,
    ModelList,
    ModelPhase,
    Servable,
    VersionInfo,
)
from neuron_agent.sources.model_text import ModelText
from neuron_agent.supervisor import HARNESS, Supervisor

VERSION = "0.1.0"


def version(supervisor: Supervisor) -> VersionInfo:
    started = next((d.started for d in supervisor.devices if d.started), None)
    return VersionInfo(
        version=VERSION,
        boot_id=supervisor.boot_id,
        torch=started.torch_version if started else _installed("torch"),
        transformers=_installed("transformers"),
        cuda=started.cuda_version if started else None,
    )


def discovery(supervisor: Supervisor, cached: tuple[CachedModel, ...]) -> Discovery:
    inventory = supervisor.inventory
    return Discovery(
        boot_id=supervisor.boot_id,
        hostname=platform.node(),
        os=platform.system().lower(),
        kernel=platform.release(),
        devices=tuple(spec.facts for spec in inventory.devices),
        harnesses=(HARNESS,),
        driver=inventory.driver,
        cuda=inventory.cuda,
        cuda_unavailable_reason=inventory.cuda_unavailable_reason,
        cached_models=cached,
    )


def health(supervisor: Supervisor) -> Health:
    return Health(
        boot_id=supervisor.boot_id,
        uptime_seconds=round(time.monotonic() - supervisor.started_at, 3),
        devices=tuple(device.health() for device in supervisor.devices),
        models=tuple(model_health(model) for model in supervisor.models.values()),
        lifecycle_cycles=supervisor.num_lifecycle_cycles,
        activation=activation(supervisor),
        faults=tuple(supervisor.faults),
    )


def activation(supervisor: Supervisor) -> str:
    is_leaving = supervisor.is_stopping or supervisor.is_draining
    return "draining" if is_leaving else "active"


def model_health(model: ModelState) -> ModelHealth:
    report = model.report
    return ModelHealth(
        id=model.id,
        in_flight=model.num_in_flight,
        queue_depth=model.num_queued,
        max_in_flight=model.places.max_in_flight,
        max_queue_depth=model.places.max_queue_depth,
        rejected=dict(model.rejected),
        kv_used_ratio=report.kv_used_ratio if report else 0.0,
        prefix_hit_ratio=report.prefix_hit_ratio if report else 0.0,
        tok_s_prefill=report.tok_s_prefill if report else 0.0,
        tok_s_decode=report.tok_s_decode if report else 0.0,
    )


def models(supervisor: Supervisor) -> ModelList:
    return ModelList(tuple(model_info(model) for model in supervisor.models.values()))


def model_info(model: ModelState) -> ModelInfo:
    ready, text = model.ready, model.text
    return ModelInfo(
        id=model.id,
        harness=HARNESS,
        phase=model.phase,
        devices=() if model.device_index is None else (model.device_index,),
        progress=model.progress,
        failure=model.failure,
        vram_used_mb=ready.memory_bytes // MEGABYTE if ready else None,
        needed_mb=_needed_mb(ready) if ready else None,
        load_seconds=round(ready.load_seconds, 3) if ready else None,
        quant=ready.quant if ready else model.request.quant,
        dtype=ready.dtype if ready else model.request.dtype,
        capabilities=capabilities(text) if text else (),
        limit=_limit(model),
        tool_call=text is not None and calls_tools(text),
        reasoning=text is not None and text.format.reasoning is not None,
        servable=_servable(model),
    )


def capabilities(text: ModelText) -> tuple[str, ...]:
    """Return what can be asked of a model; chats need a template."""
    chat = ("chat",) if text.template else ()
    return (*chat, "completions", "embeddings")


def calls_tools(text: ModelText) -> bool:
    """Whether tools can be shown to the model, and its calls are understood."""
    is_shown = text.template is not None and text.template.takes_tools
    return is_shown and text.format.tools is not None


def _limit(model: ModelState) -> ModelLimit | None:
    if model.ready is None:
        return None
    context = model.context_tokens
    return ModelLimit(context=context, input=context - 1, output=context - 1)


def _servable(model: ModelState) -> Servable:
    if model.failure is not None:
        return Servable(ok=False, reason=model.failure.message)
    if model.text is not None and model.text.template is None:
        return Servable(ok=False, reason="the model has no chat template")
    if model.phase is ModelPhase.READY and model.ready and model.ready.slow_lane:
        return Servable(ok=True, reason="its cache is not plain attention: one request at a time")
    return Servable(ok=True)


@lru_cache
def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _needed_mb(ready: ModelReady) -> int | None:
    return None if ready.needed_bytes is None else -(-ready.needed_bytes // MEGABYTE)
