"""The models of a fake neuron: what is loaded where, how loads pass, what memory is left.

Belongs to the server's thread. Knows nothing of HTTP: what cannot be done raises a `Refusal`.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from neuron_agent.protocol import (
    ErrorCode,
    LoadFailure,
    LoadProgress,
    LoadRequest,
    ModelInfo,
    ModelLimit,
    ModelPhase,
    UnloadRequest,
)
from tests.fakes.http_server import Exchange
from tests.fakes.neuron_knobs import Knobs, Refusal, until


@dataclass(slots=True)
class FakeModel:
    """A model on the neuron, and the chat requests it is answering."""

    info: ModelInfo
    options: LoadRequest
    running: set[Exchange] = field(default_factory=set)

    def set(self, **changes: Any) -> None:
        self.info = replace(self.info, **changes)


class FakeModels:
    """Loads and unloads as the knobs say."""

    def __init__(self, knobs: Knobs) -> None:
        self._knobs = knobs
        self._models: dict[str, FakeModel] = {}
        self._background: set[asyncio.Task[None]] = set()
        self.num_loads: Counter[str] = Counter()
        self.num_unloads: Counter[str] = Counter()

    def all(self) -> tuple[FakeModel, ...]:
        return tuple(self._models.values())

    def get(self, model_id: str) -> FakeModel | None:
        return self._models.get(model_id)

    def find(self, model_id: str) -> FakeModel:
        """Return a model. Raises Refusal (404)."""
        if model_id not in self._models:
            raise Refusal(404, ErrorCode.MODEL_NOT_FOUND, f"{model_id} is not on this neuron")
        return self._models[model_id]

    def place(self, options: LoadRequest, devices: tuple[int, ...]) -> None:
        """Make a model ready, as if it had been loaded long ago."""
        model = FakeModel(self._new_info(options, devices), options)
        model.set(phase=ModelPhase.READY, progress=None, load_seconds=0.0)
        self._models[options.model_id] = model

    async def load(self, options: LoadRequest) -> FakeModel:
        """Begin a load or join one; with `wait`, return at its end. Raises Refusal (409, 422)."""
        if self._knobs.refuse_load is not None:
            raise self._knobs.refuse_load
        model = self._models.get(options.model_id)
        if model is None or model.info.phase is ModelPhase.FAILED:
            model = self._begin_load(options)
        elif replace(model.options, wait=options.wait) != options:
            message = f"{options.model_id} is there with other options"
            raise Refusal(409, ErrorCode.LOADED_WITH_OTHER_OPTIONS, message)
        if options.wait:
            await until(lambda: model.info.phase is not ModelPhase.LOADING)
        if model.info.failure is not None:
            raise Refusal(422, model.info.failure.code, model.info.failure.message)
        return model

    def unload(self, asked: UnloadRequest) -> FakeModel:
        """Begin to drain and unload. Raises Refusal (404, 409)."""
        model = self.find(asked.model_id)
        if asked.only_if_idle and model.running:
            raise Refusal(409, ErrorCode.BUSY, f"{len(model.running)} requests are in flight")
        if model.info.phase is not ModelPhase.DRAINING:
            model.set(phase=ModelPhase.DRAINING)
            self._spawn(self._finish_unload(model, asked.drain_seconds))
        return model

    def forget(self) -> None:
        """Lose everything, as the end of a process does."""
        for task in tuple(self._background):
            task.cancel()
        self._models.clear()
        self.num_loads.clear()
        self.num_unloads.clear()

    def free_mb(self, device: int) -> int:
        used_mb = sum(
            (model.info.vram_used_mb or 0) // len(model.info.devices)
            for model in self._models.values()
            if device in model.info.devices and model.info.phase is not ModelPhase.FAILED
        )
        return self._knobs.device_memory_mb[device] - used_mb

    def _begin_load(self, options: LoadRequest) -> FakeModel:
        model = FakeModel(self._new_info(options, self._choose_devices(options)), options)
        self._models[options.model_id] = model
        self.num_loads[options.model_id] += 1
        self._spawn(self._finish_load(model))
        return model

    def _new_info(self, options: LoadRequest, devices: tuple[int, ...]) -> ModelInfo:
        context_tokens = options.max_context or self._knobs.context_tokens
        return ModelInfo(
            id=options.model_id,
            harness=options.harness,
            phase=ModelPhase.LOADING,
            devices=devices,
            progress=LoadProgress(stage="reading", percent=0.0),
            vram_used_mb=self._knobs.memory_of(options.model_id),
            needed_mb=self._knobs.model_needed_mb.get(options.model_id),
            limit=ModelLimit(context_tokens, context_tokens, context_tokens),
        )

    def _choose_devices(self, options: LoadRequest) -> tuple[int, ...]:
        """Return the devices asked for, else those with most room. Raises Refusal (422)."""
        num_devices = options.tensor_parallel
        by_room = sorted(range(len(self._knobs.device_memory_mb)), key=self.free_mb, reverse=True)
        devices = options.devices or tuple(by_room[:num_devices])
        if len(devices) != num_devices or not set(devices) <= set(by_room):
            raise Refusal(422, ErrorCode.UNSUPPORTED_OPTION, "no such devices here")
        needed_mb = self._knobs.memory_of(options.model_id) // num_devices
        free_mb = min(self.free_mb(device) for device in devices)
        if needed_mb > free_mb:
            message = f"{options.model_id} needs {needed_mb} MB, {free_mb} MB are free"
            raise Refusal(
                422, ErrorCode.DOES_NOT_FIT, message, needed_mb=needed_mb, free_mb=free_mb
            )
        return devices

    async def _finish_load(self, model: FakeModel) -> None:
        began_at = time.monotonic()

        def is_unloaded() -> bool:
            seconds = max(self._knobs.load_seconds, 0.001)
            percent = min(99.0, 100 * (time.monotonic() - began_at) / seconds)
            model.set(progress=LoadProgress("reading", percent))
            return model.info.phase is not ModelPhase.LOADING

        if await until(is_unloaded, lambda: self._knobs.load_seconds):
            return
        if self._knobs.fail_load is not None:
            failure = LoadFailure(*self._knobs.fail_load)
            model.set(phase=ModelPhase.FAILED, failure=failure, progress=None)
        else:
            load_seconds = time.monotonic() - began_at
            model.set(phase=ModelPhase.READY, load_seconds=load_seconds, progress=None)

    async def _finish_unload(self, model: FakeModel, drain_seconds: float) -> None:
        await until(lambda: not model.running, lambda: drain_seconds)
        for exchange in tuple(model.running):
            exchange.drop()
        model.set(phase=ModelPhase.UNLOADING)
        await until(lambda: False, lambda: self._knobs.unload_seconds)
        self.num_unloads[model.info.id] += 1
        del self._models[model.info.id]

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
