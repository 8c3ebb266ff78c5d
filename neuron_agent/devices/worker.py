"""The thread that owns a device: it obeys its mailbox, steps its models and reports.

    while not told to end:
        obey the mailbox (waiting only when no model has work, a second at most)
        one step() of each model with work; a step's outputs leave in one message
        once a second, from between two steps: a Report

It decides what an error of a step or a load means for the device. It knows neither torch nor the
socket: the device and the way to send come in from outside, so a test can drive it without both.
"""

import queue
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

import structlog

from neuron_agent.devices.channel import (
    Cancel,
    Command,
    DeviceReport,
    LoadFailed,
    LoadModel,
    ModelLoading,
    ModelReady,
    ModelUnloaded,
    OutOfMemory,
    Output,
    Outputs,
    Poisoned,
    Report,
    Shutdown,
    Submit,
    UnloadModel,
)
from neuron_agent.devices.contract import Device, Engine
from neuron_agent.devices.faults import FaultKind, classify
from neuron_agent.engine.refusals import LoadRefused, RequestRefused
from neuron_agent.protocol import ErrorCode

REPORT_SECONDS = 1.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Fault:
    """An error, judged. It holds no traceback, which would keep the step's tensors alive."""

    kind: FaultKind
    text: str


class Worker:
    """`send` hands a report to the front process; `clock` counts seconds, from anywhere."""

    def __init__(
        self,
        device: Device,
        mailbox: queue.SimpleQueue[Command],
        send: Callable[[DeviceReport], None],
        clock: Callable[[], float],
    ) -> None:
        self._device = device
        self._mailbox = mailbox
        self._send = send
        self._clock = clock
        self._engines: dict[str, Engine] = {}
        self._live: dict[str, str] = {}  # request_id -> model_id
        self._outbox: list[Output] = []
        self._is_poisoned = False
        self._memory = (0, 0)  # used and free bytes, as last measured
        self._report_due_at = 0.0

    def run(self) -> None:
        """Own the device until told to end. Raises what leaves no way to go on."""
        started = self._device.bind()
        self._memory = (0, started.memory_total_bytes)
        self._send(started)
        while self._obey_mailbox():
            self._step_engines()
            self._report_if_due()

    # --- the mailbox ---------------------------------------------------------------------------

    def _obey_mailbox(self) -> bool:
        """Carry out all commands there are; False once one of them was to end."""
        command = self._first_command()
        while command is not None:
            if isinstance(command, Shutdown):
                return False
            self._obey(command)
            self._flush()
            command = self._next_command()
        return True

    def _first_command(self) -> Command | None:
        if self._has_work:
            return self._next_command()
        try:
            seconds = max(0.0, self._report_due_at - self._clock())
            return self._mailbox.get(timeout=min(seconds, REPORT_SECONDS))
        except queue.Empty:
            return None

    def _next_command(self) -> Command | None:
        try:
            return self._mailbox.get_nowait()
        except queue.Empty:
            return None

    @property
    def _has_work(self) -> bool:
        return not self._is_poisoned and any(e.has_work for e in self._engines.values())

    def _obey(self, command: LoadModel | UnloadModel | Submit | Cancel) -> None:
        match command:
            case Submit():
                self._submit(command)
            case Cancel(request_id=request_id):
                self._cancel(request_id)
            case LoadModel():
                self._load(command)
            case UnloadModel(model_id=model_id):
                self._unload(model_id)
            case _:
                assert_never(command)

    # --- requests ------------------------------------------------------------------------------

    def _submit(self, submit: Submit) -> None:
        if self._is_poisoned:
            self._outbox.append(_device_fault(submit.request_id))
            return
        engine = self._engines.get(submit.model_id)
        if engine is None:
            self._refuse(submit, ErrorCode.MODEL_NOT_LOADED, f"{submit.model_id} is not loaded")
            return
        try:
            engine.add(submit)
        except RequestRefused as error:
            self._refuse(submit, error.code, str(error))
        except Exception as error:
            # Any other error of taking a request in is a bug of ours in that request's work.
            self._log_fault(submit.model_id, error)
            self._refuse(submit, ErrorCode.REQUEST_FAILED, "the request could not be taken in")
        else:
            self._live[submit.request_id] = submit.model_id

    def _refuse(self, submit: Submit, code: ErrorCode, message: str) -> None:
        self._outbox.append(
            Output(submit.request_id, [], finish="error", error_code=code, error=message)
        )

    def _cancel(self, request_id: str) -> None:
        """Nothing to do for a request that ended meanwhile: its last output is on its way."""
        model_id = self._live.get(request_id)
        if model_id is not None and not self._is_poisoned:
            output = self._engines[model_id].cancel(request_id)
            self._put([output] if output else [])

    def _put(self, outputs: list[Output]) -> None:
        self._outbox += outputs
        for output in outputs:
            if output.finish is not None:
                self._live.pop(output.request_id, None)

    def _flush(self) -> None:
        if self._outbox:
            self._send(Outputs(self._outbox))
            self._outbox = []

    # --- models --------------------------------------------------------------------------------

    def _load(self, command: LoadModel) -> None:
        if self._is_poisoned:
            self._send(_load_failed(command, ErrorCode.DEVICE_FAULT, "the device is poisoned"))
            return
        if command.model_id in self._engines:
            code = ErrorCode.LOADED_WITH_OTHER_OPTIONS
            self._send(_load_failed(command, code, "the model is loaded already"))
            return
        started_at = self._clock()
        match self._try_load(command):
            case None:
                self._send(self._ready(command, self._clock() - started_at))
            case LoadFailed() as refusal:
                self._device.empty_caches()
                self._send(refusal)
            case Fault() as fault:
                self._after_load_fault(command, fault)
        self._report_due_at = self._clock()  # the memory is another now

    def _try_load(self, command: LoadModel) -> LoadFailed | Fault | None:
        begun: set[str] = set()

        def progress(stage: str, percent: float, bytes_done: int, bytes_total: int) -> None:
            """Also called from the thread that watches a load: it must do nothing but send."""
            if stage not in begun:
                log.info("load_stage", model=command.model_id, stage=stage)
            begun.add(stage)
            self._send(ModelLoading(command.model_id, stage, percent, bytes_done, bytes_total))

        try:
            self._engines[command.model_id] = self._device.load(command, progress)
        except LoadRefused as error:
            log.info("load_refused", model=command.model_id, code=error.code, why=error.message)
            return _load_refused(command, error)
        except Exception as error:
            # The device is alive unless the table says otherwise; this load is over.
            return self._judge(command.model_id, error)
        return None

    def _after_load_fault(self, command: LoadModel, fault: Fault) -> None:
        code, message = ErrorCode.LOAD_FAILED, "the model could not be loaded"
        match fault.kind:
            case FaultKind.POISON:
                # Whether the load is to blame shows when it does this again: the front counts.
                self._poison(fault)
                return
            case FaultKind.OUT_OF_MEMORY:
                self._recover_memory(command.model_id, fault)
                code, message = ErrorCode.DOES_NOT_FIT, "memory ran out during the load"
            case FaultKind.REQUEST:
                self._device.empty_caches()
            case _:
                assert_never(fault.kind)
        self._send(_load_failed(command, code, message, free_bytes=self._memory[1]))

    def _ready(self, command: LoadModel, seconds: float) -> ModelReady:
        engine = self._engines[command.model_id]
        limits = engine.limits
        log.info("model_ready", model=command.model_id, seconds=round(seconds, 3))
        return ModelReady(
            command.model_id,
            memory_bytes=limits.memory_bytes,
            needed_bytes=limits.needed_bytes,
            context_tokens=limits.context_tokens,
            kv_tokens=limits.kv_tokens,
            dtype=limits.dtype,
            quant=limits.quant,
            load_seconds=seconds,
            slow_lane=engine.is_slow_lane,
        )

    def _unload(self, model_id: str) -> None:
        """A poisoned device frees nothing: touching its memory may hang. It is replaced anyway."""
        if self._is_poisoned:
            return
        for request_id in [name for name, model in self._live.items() if model == model_id]:
            self._cancel(request_id)
        self._flush()
        engine = self._engines.pop(model_id, None)
        if engine is not None:
            engine.close()
            self._device.reclaim(model_id)
        self._send(ModelUnloaded(model_id))
        self._report_due_at = self._clock()

    # --- steps and faults ----------------------------------------------------------------------

    def _step_engines(self) -> None:
        for model_id, engine in list(self._engines.items()):
            if self._is_poisoned:
                return
            if engine.has_work:
                self._step(model_id, engine)
                self._flush()

    def _step(self, model_id: str, engine: Engine) -> None:
        try:
            self._put(engine.step())
            return
        except Exception as error:
            # The table decides what it means; see below.
            fault = self._judge(model_id, error)
        match fault.kind:
            case FaultKind.POISON:
                self._poison(fault)
            case FaultKind.OUT_OF_MEMORY:
                self._give_up_one(engine, "the device ran out of memory", fault)
                self._recover_memory(model_id, fault)
            case FaultKind.REQUEST:
                self._give_up_one(engine, "the engine failed on this request", fault)
            case _:
                assert_never(fault.kind)

    def _give_up_one(self, engine: Engine, message: str, fault: Fault) -> None:
        output = engine.give_up_one(ErrorCode.REQUEST_FAILED, message)
        if output is None:
            # No request to give up: stepping again would fail for ever. End, and be replaced.
            raise RuntimeError(f"a step without requests failed: {fault.text}")
        self._put([output])

    def _recover_memory(self, model_id: str, fault: Fault) -> None:
        """Give up what every model on the device keeps only because it may be of use."""
        for engine in self._engines.values():
            engine.drop_prefixes()
        self._device.empty_caches()
        self._send(OutOfMemory(fault.text, model_id))

    def _poison(self, fault: Fault) -> None:
        """End all requests and touch the device no more; the engines stay, nothing is freed."""
        self._is_poisoned = True
        self._put([_device_fault(request_id) for request_id in self._live])
        self._flush()
        self._send(Poisoned(fault.text, list(self._engines)))

    def _judge(self, model_id: str, error: Exception) -> Fault:
        kind = self._log_fault(model_id, error)
        first_line = str(error).partition("\n")[0][:300]
        return Fault(kind, f"{type(error).__name__}: {first_line}")

    def _log_fault(self, model_id: str, error: Exception) -> FaultKind:
        kind = classify(error)
        log.error("fault", model=model_id, kind=kind, exc_info=error)
        return kind

    # --- reports -------------------------------------------------------------------------------

    def _report_if_due(self) -> None:
        if self._clock() >= self._report_due_at:
            self._report()

    def _report(self) -> None:
        self._report_due_at = self._clock() + REPORT_SECONDS
        if not self._is_poisoned:
            self._measure_memory()
        used, free = self._memory
        models = [engine.report() for engine in self._engines.values()]
        self._send(Report(memory_used_bytes=used, memory_free_bytes=free, models=models))

    def _measure_memory(self) -> None:
        try:
            self._memory = self._device.memory()
        except Exception as error:
            # A device that cannot say how full it is has failed, whatever the words.
            self._poison(self._judge("", error))


def _device_fault(request_id: str) -> Output:
    return Output(
        request_id,
        [],
        finish="device_fault",
        error_code=ErrorCode.DEVICE_FAULT,
        error="the device failed; its process is being replaced",
    )


def _load_refused(command: LoadModel, refusal: LoadRefused) -> LoadFailed:
    return LoadFailed(
        command.model_id,
        code=refusal.code,
        message=refusal.message,
        hint=refusal.hint,
        needed_bytes=refusal.needed_bytes,
        free_bytes=refusal.free_bytes,
    )


def _load_failed(
    command: LoadModel, code: ErrorCode, message: str, free_bytes: int | None = None
) -> LoadFailed:
    return LoadFailed(command.model_id, code=code, message=message, free_bytes=free_bytes)
