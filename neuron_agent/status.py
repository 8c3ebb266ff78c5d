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
        activation="draining" if supervisor.is_stopping else "active",
        faults=tuple(supervisor.faults),
    )


def model_health(model: ModelState) -> ModelHealth:
    report = model.report
    return ModelHealth(
        id=model.id,
        in_flight=model.num_in_flight,
        queue_depth=model.num_queued,
        max_in_flight=model.max_in_flight,
        max_queue_depth=model.max_queue_depth,
        rejected=dict(model.rejected),
        kv_used_ratio=report.kv_used_ratio if report else 0.0,
        prefix_hit_ratio=report.prefix_hit_ratio if report else 0.0,
        tok_s_prefill=report.tok_s_prefill if report else 0.0,
        tok_s_decode=report.tok_s_decode if report else 0.0,
    )


def models(supervisor: Supervisor) -> ModelList:
    return ModelList(tuple(model_info(model) for model in supervisor.models.values()))


def model_info(model: ModelState) -> ModelInfo:
    ready = model.ready
    template = model.text.template if model.text else None
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
        quant=model.request.quant,
        dtype=ready.dtype if ready else model.request.dtype,
        capabilities=("chat",) if template else (),
        limit=_limit(model),
        tool_call=template.takes_tools if template else False,
        reasoning=template.takes_reasoning if template else False,
        servable=_servable(model),
    )


def _limit(model: ModelState) -> ModelLimit | None:
    if model.ready is None:
        return None
    context = model.ready.context_tokens
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
