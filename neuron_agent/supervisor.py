"""The neuron itself: its devices, its models, and what may be done with them.

One object on the front's event loop. Loads are single-flight: whoever asks for a model that is
being loaded waits for the same load. Status is what devices last reported; nothing here waits for
a device to answer. It knows no HTTP and no text.
"""

import asyncio
import contextlib
import time
import uuid
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import structlog

from neuron_agent.config import NeuronConfig
from neuron_agent.devices.inventory import Inventory, read_sensors
from neuron_agent.errors import BadRequest, Conflict, NeuronError, NotFound, Unavailable
from neuron_agent.errors import Unprocessable as Refused
from neuron_agent.managed_device import ManagedDevice
from neuron_agent.model_state import LEAVING, ModelState
from neuron_agent.protocol import (
    ErrorCode,
    Fault,
    LoadFailure,
    LoadProgress,
    LoadRequest,
    ModelPhase,
    UnloadRequest,
)
from neuron_agent.sources import repository
from neuron_agent.sources.model_text import ModelText, read_model_text
from neuron_agent.text.chat_template import import_renderer
from neuron_agent.text_library import TextLibrary
from neuron_agent.wire.json_body import check_range

log = structlog.get_logger()

HARNESS = "torch"
MAX_LEDGER_LINES = 200
MAX_MODEL_ID_CHARACTERS = 256
MAX_CONTEXT_TOKENS = 2**31 - 1
NUM_DOWNLOADS = 4
"""Loads that may fetch at once; further ones wait for one of these."""
SENSOR_PERIOD_SECONDS = 2.0
UNLOAD_ANSWER_SECONDS = 2.0
"""How long an unload's answer waits for the memory to be free; the unload goes on in any case."""


class Supervisor:
    """Start it, ask it, stop it. Every method belongs to the event loop it was started on."""

    def __init__(
        self, config: NeuronConfig, inventory: Inventory, environment: Mapping[str, str]
    ) -> None:
        self.config = config
        self.inventory = inventory
        self.boot_id = uuid.uuid4().hex
        self.started_at = time.monotonic()
        self.models: dict[str, ModelState] = {}
        self.faults: deque[Fault] = deque(maxlen=MAX_LEDGER_LINES)
        self.num_lifecycle_cycles = 0
        self.is_stopping = False
        self.is_draining = False
        self.is_drained = asyncio.Event()
        """Set when a restart may begin: nothing runs any more, or it has had its time."""
        self.devices = tuple(
            ManagedDevice(spec, config, environment, self.faults.append)
            for spec in inventory.devices
        )
        self.texts = TextLibrary(config.hf_cache, config.registries)
        self._tasks: set[asyncio.Task[None]] = set()
        # A hub may take hours to answer and a sick driver may never: neither may hold a thread
        # that a request's text is waiting for.
        self._download_threads = ThreadPoolExecutor(NUM_DOWNLOADS, "download")
        self._sensor_thread = ThreadPoolExecutor(1, "sensors")

    # --- life ------------------------------------------------------------------------------------

    def start(self, models: Sequence[str | LoadRequest]) -> None:
        """Start every device's process, and the loads of these models."""
        for device in self.devices:
            self._spawn(device.run())
        self._spawn(_warm_up())
        if any(device.spec.uuid for device in self.devices):
            self._spawn(self._watch_sensors())
        for wanted in models:
            request = LoadRequest(wanted) if isinstance(wanted, str) else wanted
            try:
                self.load(replace(request, wait=False))
            except NeuronError as error:
                log.error("model at start", model=request.model_id, error=error.message)

    def drain(self, seconds: float) -> None:
        """Take no request and no load from here on; `is_drained` is set when all have ended.

        Asked again, nothing changes: the first drain goes on.
        """
        if self.is_draining:
            return
        self.is_draining = True
        log.info("drain", seconds=seconds)
        self._spawn(self._drain(seconds))

    async def _drain(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(_until_idle(model, until) for model in self.models.values()))
        self.is_drained.set()

    @property
    def wanted_models(self) -> tuple[LoadRequest, ...]:
        """What another life of this neuron should load: all that is here to stay."""
        return tuple(
            replace(model.request, wait=False)
            for model in self.models.values()
            if model.phase not in LEAVING
        )

    async def stop(self) -> None:
        """End every device process, running requests with it. Returns when they are gone."""
        self.is_stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.texts.close()
        for threads in (self._download_threads, self._sensor_thread):
            threads.shutdown(wait=False, cancel_futures=True)

    def check_integrity(self) -> None:
        """Raise AssertionError where a count and what it counts disagree."""
        for model in self.models.values():
            model.check_integrity()
        running = {r.id for m in self.models.values() for r in m.requests.values()}
        for device in self.devices:
            assert device.requests.keys() <= running

    # --- loading ---------------------------------------------------------------------------------

    def load(self, request: LoadRequest) -> ModelState:
        """Start a load, or join the one that is going on. Raises NeuronError if it cannot work."""
        self._check_options(request)
        present = self.models.get(request.model_id)
        if present is not None and present.phase in LEAVING:
            raise Conflict(f"{request.model_id} is being unloaded", code=ErrorCode.BUSY)
        if present is not None and present.phase is not ModelPhase.FAILED:
            return _same_load(present, request)
        self.choose_device(request)  # refuse now what no device could take
        model = ModelState(
            request,
            self.config.max_in_flight,
            self.config.max_queue_depth,
            self.config.max_per_principal,
        )
        self.models[request.model_id] = model
        self._spawn(self._load(model))
        return model

    async def wait_until_loaded(self, model: ModelState) -> None:
        """Return when the model is ready. Raises NeuronError if its load failed or was given up."""
        while model.phase is not ModelPhase.READY:
            if model.failure is not None:
                raise _as_error(model.failure)
            if model.is_gone or model.phase in LEAVING:
                raise Conflict(f"{model.id} was unloaded meanwhile", code=ErrorCode.BUSY)
            await model.wait_for_change()

    def choose_device(self, request: LoadRequest, weight_bytes: int = 0) -> ManagedDevice:
        """Return the device asked for, else the best: the most free memory, a living process.

        A device that is being restarted looks emptier than it will be: one whose process has
        started, and has room for the weights, goes before it. Raises Unavailable.
        """
        wanted = request.devices or tuple(device.index for device in self.devices)
        alive = [d for d in self.devices if d.index in wanted and not d.has_given_up]
        if not alive:
            raise Unavailable(
                "the device was given up after repeated faults",
                code=ErrorCode.DEVICE_FAULT,
                retry_after_seconds=60,
            )

        def worth(device: ManagedDevice) -> tuple[bool, int, int, int]:
            is_sure = device.started is not None and device.free_bytes >= weight_bytes
            return is_sure, device.free_bytes, -len(device.models), -device.index

        return max(alive, key=worth)

    def _check_options(self, request: LoadRequest) -> None:
        if self.is_stopping or self.is_draining:
            raise _leaving()
        name = request.model_id
        if not 0 < len(name) <= MAX_MODEL_ID_CHARACTERS or not name.isprintable():
            raise BadRequest("model_id must be 1 to 256 printable characters", param="model_id")
        if request.harness != HARNESS:
            raise _unsupported("harness", f"this neuron's harness is {HARNESS!r}")
        if request.tensor_parallel != 1:
            raise _unsupported("tensor_parallel", "this neuron loads a model onto one device")
        check_range("max_context", request.max_context, 1, MAX_CONTEXT_TOKENS)
        known = [device.index for device in self.devices]
        if request.devices is not None and len(request.devices) != 1:
            raise _unsupported("devices", "name one device")
        if any(index not in known for index in request.devices or ()):
            raise _unsupported("devices", f"this neuron's devices are {known}")
        repository.local_folder(request)

    async def _load(self, model: ModelState) -> None:
        """Bring a model to its device: files, text side, then the device does the rest."""
        log.info("load", model=model.id, stage="resolving")
        self.num_lifecycle_cycles += 1
        try:
            await self._prepare(model)
            if model.phase is ModelPhase.LOADING:
                device = self.choose_device(model.request, model.weight_bytes)
                device.load(model)
        except NeuronError as error:
            _fail(model, error)
        except Exception:  # the top of a load: this model fails, the neuron goes on
            log.exception("load", model=model.id)
            _fail(model, Refused("the load failed unexpectedly", code=ErrorCode.LOAD_FAILED))

    async def _prepare(self, model: ModelState) -> None:
        loop = asyncio.get_running_loop()

        def show(progress: LoadProgress) -> None:
            loop.call_soon_threadsafe(model.show, progress)

        is_here = repository.local_folder(model.request) is not None
        folder = await loop.run_in_executor(
            None if is_here else self._download_threads,
            repository.find_folder,
            model.request,
            self.config.hf_cache,
            show,
            self.config.registries,
        )
        model.text = await asyncio.to_thread(read_model_text, folder)
        model.weight_bytes = await asyncio.to_thread(repository.weight_bytes, folder)
        model.folder = folder

    # --- unloading -------------------------------------------------------------------------------

    async def unload(self, request: UnloadRequest) -> ModelState:
        """Begin an unload and wait a little for it. Raises NotFound, or Conflict if busy.

        The answer's `is_gone` says whether the memory is free already.
        """
        model = self.find(request.model_id)
        if request.only_if_idle and model.requests and model.phase not in LEAVING:
            raise Conflict(f"{len(model.requests)} requests are running", code=ErrorCode.BUSY)
        if model.phase not in LEAVING:
            self._begin_unload(model, request.drain_seconds)
        elif not request.only_if_idle:
            model.shorten_drain(time.monotonic() + request.drain_seconds)
        if model.phase is ModelPhase.UNLOADING:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(UNLOAD_ANSWER_SECONDS):
                    await _until_gone(model)
        return model

    def find(self, model_id: str) -> ModelState:
        """Return a model by its id. Raises NotFound."""
        model = self.models.get(model_id)
        if model is None:
            raise NotFound(
                f"the model {model_id[:MAX_MODEL_ID_CHARACTERS]!r} is not on this neuron",
                code=ErrorCode.MODEL_NOT_FOUND,
                param="model",
            )
        return model

    async def text_of(self, request: LoadRequest) -> ModelText:
        """Return the text side of a model, be it loaded or not. Raises NotFound, Unprocessable."""
        model = self.models.get(request.model_id)
        if model is not None and model.text is not None:
            return model.text
        return await self.texts.text_of(request)

    def find_serving(self, model_id: str) -> ModelState:
        """Return a model for a new request. Raises NotFound, or Unavailable before a restart."""
        model = self.find(model_id)
        if self.is_draining:
            model.reject("draining")
            raise _leaving()
        return model

    def device_of(self, model: ModelState) -> ManagedDevice:
        """Return the device a model is on. Raises Unavailable if it is on none yet."""
        if model.device_index is None:
            raise Unavailable(f"{model.id} is being loaded", code=ErrorCode.MODEL_LOADING)
        return self.devices[model.device_index]

    def _begin_unload(self, model: ModelState, drain_seconds: float) -> None:
        """Take no new request from here on; the rest happens beside the caller."""
        log.info("unload", model=model.id, running=len(model.requests), drain_s=drain_seconds)
        if model.phase is ModelPhase.READY and model.requests and drain_seconds > 0:
            model.move(ModelPhase.DRAINING)
            model.drain_until = time.monotonic() + drain_seconds
        else:
            model.move(ModelPhase.UNLOADING)
        self.num_lifecycle_cycles += 1
        self._spawn(self._unload(model))

    async def _unload(self, model: ModelState) -> None:
        if model.phase is ModelPhase.DRAINING:
            await _until_drained(model)
        if model.phase is ModelPhase.DRAINING and not model.is_gone:
            model.move(ModelPhase.UNLOADING)
        self._take_off_device(model)
        await _until_gone(model)
        if self.models.get(model.id) is model:
            del self.models[model.id]
            if model.text is not None:
                self.texts.keep(model.request, model.text)

    def _take_off_device(self, model: ModelState) -> None:
        device = None if model.device_index is None else self.devices[model.device_index]
        if device is not None and device.models.get(model.id) is model:
            device.unload(model)
        else:
            model.vanish()  # failed, or not placed yet: there is nothing to free

    # --- the rest --------------------------------------------------------------------------------

    async def _watch_sensors(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sensors = await loop.run_in_executor(
                self._sensor_thread, read_sensors, self.inventory.devices
            )
            for device in self.devices:
                device.sensors = sensors.get(device.index, device.sensors)
            await asyncio.sleep(SENSOR_PERIOD_SECONDS)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the supervisor failed", exc_info=task.exception())


def _same_load(present: ModelState, request: LoadRequest) -> ModelState:
    """Return the model that is there if it is what is asked for. Raises Conflict."""
    same_devices = request.devices in (None, present.request.devices, (present.device_index,))
    if not same_devices or _what_is_loaded(present.request) != _what_is_loaded(request):
        raise Conflict(
            f"{present.id} is here already, loaded with other options",
            code=ErrorCode.LOADED_WITH_OTHER_OPTIONS,
            hint="unload it first",
        )
    return present


def _what_is_loaded(request: LoadRequest) -> LoadRequest:
    """Return a request without what does not change the model: who waits, and where it goes."""
    return replace(request, wait=False, devices=None)


async def _warm_up() -> None:
    """Pay for the template library now, beside the devices' start, not in the first request."""
    await asyncio.to_thread(import_renderer)


async def _until_drained(model: ModelState) -> None:
    """Return when the model is idle or gone, or its drain is over; that may come nearer."""
    while model.requests and not model.is_gone:
        seconds = model.drain_until - time.monotonic()
        if seconds <= 0:
            return
        await _until_change(model, seconds)


async def _until_idle(model: ModelState, until: float) -> None:
    while model.requests and (seconds := until - time.monotonic()) > 0:
        await _until_change(model, seconds)


async def _until_change(model: ModelState, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await model.wait_for_change()


async def _until_gone(model: ModelState) -> None:
    while not model.is_gone:
        await model.wait_for_change()


def _fail(model: ModelState, error: NeuronError) -> None:
    log.warning("load failed", model=model.id, code=error.code, error=error.message)
    if model.phase in LEAVING:
        return
    model.fail(LoadFailure(error.code, error.message, error.hint))


def _as_error(failure: LoadFailure) -> NeuronError:
    if failure.code == ErrorCode.DEVICE_FAULT:
        return Unavailable(failure.message, code=failure.code, retry_after_seconds=5)
    return Refused(
        failure.message,
        code=failure.code,
        hint=failure.hint,
        needed_mb=failure.needed_mb,
        free_mb=failure.free_mb,
    )


def _leaving() -> Unavailable:
    return Unavailable(
        "the neuron is about to restart", code=ErrorCode.BUSY, retry_after_seconds=10
    )


def _unsupported(param: str, hint: str) -> Refused:
    message = f"{param} cannot be what was asked for"
    return Refused(message, code=ErrorCode.UNSUPPORTED_OPTION, param=param, hint=hint)
