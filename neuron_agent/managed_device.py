"""One device of this neuron and the process that owns it, replaced whenever it fails.

It keeps the process alive, tells a hung one from a busy one, ends the requests of a broken one
and has its models loaded again in the next. It gives up after repeated faults. It never waits for
the device to answer a question: what it knows is what was last reported.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import assert_never

import structlog

from neuron_agent.config import NeuronConfig
from neuron_agent.devices import channel
from neuron_agent.devices.inventory import MEGABYTE, DeviceSpec, Sensors
from neuron_agent.devices.link import DeviceLink
from neuron_agent.model_state import LEAVING, ModelState, RunningRequest
from neuron_agent.protocol import (
    DeviceHealth,
    ErrorCode,
    Fault,
    LoadFailure,
    LoadProgress,
    ModelPhase,
)
from neuron_agent.recovery import (
    Breakdown,
    Fate,
    Silence,
    backoff_seconds,
    fate_of_model,
    is_given_up,
    recent,
)

log = structlog.get_logger()

_LOADING = frozenset({ModelPhase.LOADING, ModelPhase.WARMING, ModelPhase.RECOVERING})


class ManagedDevice:
    """`run()` is its life. All methods belong to the event loop."""

    def __init__(
        self,
        spec: DeviceSpec,
        config: NeuronConfig,
        environment: Mapping[str, str],
        record_fault: Callable[[Fault], None],
    ) -> None:
        self.spec = spec
        self.models: dict[str, ModelState] = {}
        self.requests: dict[str, RunningRequest] = {}
        self.started: channel.Started | None = None
        self.report: channel.Report | None = None
        self.sensors = Sensors()
        self.has_given_up = False
        self.num_faults: Counter[str] = Counter()
        self._config = config
        self._watchdog = config.watchdog
        self._silence = Silence(config.watchdog)
        self._environment = environment
        self._record_fault = record_fault
        self._link: DeviceLink | None = None
        self._unreported_bytes = 0
        """Memory taken (or, negative, given back) since the last report."""
        self._begun: set[str] = set()
        """Models whose load the present process has begun."""
        self._broken: Breakdown | None = None
        """Why the last process had to go, until the next one has started."""
        self._fault_times: list[float] = []
        self._num_nan: dict[str, int] = {}

    # --- what the supervisor asks for ------------------------------------------------------------

    @property
    def index(self) -> int:
        return self.spec.facts.index

    @property
    def pid(self) -> int | None:
        return self._link.pid if self._link else None

    @property
    def free_bytes(self) -> int:
        """Memory for another model: what was last reported, less what is still being loaded."""
        coming = [model for model in self.models.values() if model.phase in _LOADING]
        return self._free_bytes_now() - sum(model.weight_bytes for model in coming)

    def load(self, model: ModelState) -> None:
        """Make a model live here; it is loaded as soon as there is a process to do it.

        Raises what encoding the command raises, with nothing changed: a load that cannot be sent
        now could not be sent to a later process either, and would end that one's life.
        """
        channel.encode(model.load_command())
        self.models[model.id] = model
        model.device_index = self.index
        if self.started:
            self._send_load(model)

    def unload(self, model: ModelState) -> None:
        """Free a model; it vanishes when the device says so, or when its process ends."""
        if self._link and self.started:
            self._link.send(channel.UnloadModel(model.id))
        else:
            self._drop(model)

    def submit(self, request: RunningRequest, command: channel.Submit) -> None:
        """Start a request; its outputs arrive in its queue, the last one with a finish."""
        self.requests[request.id] = request
        request.submitted_at = time.monotonic()
        if self._link and self.started and not self._broken:
            self._link.send(command)
        else:
            self._end_request(request, "the device is being restarted")

    def cancel(self, request: RunningRequest) -> None:
        """Forget a request, and have the device forget it."""
        if self.requests.pop(request.id, None) and self._link:
            self._link.send(channel.Cancel(request.id))

    def health(self) -> DeviceHealth:
        used = self.report.memory_used_bytes + self._unreported_bytes if self.report else 0
        kind = self._broken.kind if self._broken else None
        return DeviceHealth(
            index=self.index,
            vram_used_mb=used // MEGABYTE,
            vram_free_mb=self._free_bytes_now() // MEGABYTE,
            poisoned=kind == "poisoned",
            hung=kind == "hung",
            restarting=self.started is None and not self.has_given_up,
            given_up=self.has_given_up,
            utilization_pct=self.sensors.utilization_pct,
            temp_c=self.sensors.temp_c,
            power_w=self.sensors.power_w,
        )

    def _free_bytes_now(self) -> int:
        if self.report is None:
            return self.spec.memory_total_bytes
        return self.report.memory_free_bytes - self._unreported_bytes

    # --- its life --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a process on the device until cancelled, or until giving up.

        1. Start a process and obey what it reports until it breaks down.
        2. End its requests, at once, and mark its models.
        3. Make sure that it is gone, then wait a little longer after each fault.
        """
        while not self.has_given_up:
            await self._run_process()
            await asyncio.sleep(self._count_fault())
        self._abandon_models()

    async def _run_process(self) -> None:
        """Start a process and live with it until it broke down and is gone."""
        command = self._config.device_command
        try:
            link = await DeviceLink.start(command, self.spec, self._environment)
        except OSError as error:
            self._break_down(Breakdown("died", f"it cannot be started: {error.strerror}"))
            return
        self._link = link
        is_worth_asking = False
        try:
            self._break_down(await self._converse(link))
        except asyncio.CancelledError:
            is_worth_asking = self.started is not None  # else it is not listening yet
            self._end_requests("the neuron is stopping")
            raise
        except Exception as error:  # the top of a device's life: a bug of ours costs one process
            log.exception("device", device=self.spec.torch_name)
            self._break_down(Breakdown("died", f"unexpected {type(error).__name__}"))
        finally:  # also when the neuron stops: no process is ever left behind
            self._link, self.started = None, None
            grace_seconds = self._watchdog.stop_seconds
            await asyncio.shield(link.stop(grace_seconds) if is_worth_asking else link.kill())

    async def _converse(self, link: DeviceLink) -> Breakdown:
        """Take reports until the process breaks down, and return how."""
        while True:
            try:
                async with asyncio.timeout(self._silence.tick_seconds):
                    report = await link.receive()
            except TimeoutError:
                self._silence.add_tick()
                if not self._silence.is_too_long:
                    continue
                return Breakdown("hung", f"no sign of life for {self._silence.seconds:.0f} s")
            except channel.ChannelError as error:
                return Breakdown("died", str(error))
            if report is None:
                return Breakdown("died", await self._describe_end(link))
            self._silence.end()
            if isinstance(report, channel.Poisoned):
                return Breakdown("poisoned", report.error)
            self._take(report)

    async def _describe_end(self, link: DeviceLink) -> str:
        status = await link.kill()
        return f"the device process ended (exit status {status})"

    # --- what a process reports ------------------------------------------------------------------

    def _take(self, report: channel.DeviceReport) -> None:
        match report:
            case channel.Started():
                self._start(report)
            case channel.Outputs():
                for output in report.outputs:
                    self._deliver(output)
            case channel.Report():
                self._take_report(report)
            case channel.ModelLoading():
                self._take_progress(report)
            case channel.ModelReady():
                self._take_ready(report)
            case channel.LoadFailed():
                self._take_failure(report)
            case channel.ModelUnloaded():
                self._take_unloaded(report)
            case channel.OutOfMemory():
                self._note_fault("out_of_memory", report.error, (report.model_id,))
            case channel.Poisoned():
                self._broken = Breakdown("poisoned", report.error)
            case _:
                assert_never(report)

    def _start(self, started: channel.Started) -> None:
        self.started, self._broken = started, None
        self._silence.note_started()
        self._unreported_bytes = 0
        self._num_nan.clear()
        log.info("device process started", device=self.spec.torch_name, pid=self.pid)
        for model in self.models.values():
            self._send_load(model)

    def _send_load(self, model: ModelState) -> None:
        assert self._link is not None
        self._silence.note_load(model.id)
        self._link.send(model.load_command())

    def _deliver(self, output: channel.Output) -> None:
        """Pass an output on; one for a request that left meanwhile is dropped."""
        request = self.requests.get(output.request_id)
        if request is None:
            return
        if output.finish is not None:
            self._forget(request)
        request.outputs.put_nowait(output)

    def _take_report(self, report: channel.Report) -> None:
        self.report = report
        self._unreported_bytes = 0
        for line in report.models:
            model = self.models.get(line.model_id)
            if model is None:
                continue
            model.report = line
            if line.nan_logits > self._num_nan.get(line.model_id, 0):
                self._note_fault("nan_logits", "the logits were not numbers", (line.model_id,))
            self._num_nan[line.model_id] = line.nan_logits

    def _take_progress(self, report: channel.ModelLoading) -> None:
        model = self.models.get(report.model_id)
        self._begun.add(report.model_id)
        if model is None or model.phase not in _LOADING:
            return
        model.show(
            LoadProgress(report.stage, report.percent, report.bytes_done, report.bytes_total)
        )

    def _take_ready(self, report: channel.ModelReady) -> None:
        self._silence.note_load_over(report.model_id)
        model = self.models.get(report.model_id)
        if model is None or model.phase not in _LOADING:
            return  # it is to be unloaded; that command is on its way
        model.become_ready(report)
        self._unreported_bytes += report.memory_bytes
        log.info(
            "model ready",
            model=model.id,
            device=self.spec.torch_name,
            seconds=round(report.load_seconds, 2),
            memory_mb=report.memory_bytes // MEGABYTE,
            context=report.context_tokens,
        )

    def _take_failure(self, report: channel.LoadFailed) -> None:
        self._silence.note_load_over(report.model_id)
        model = self.models.pop(report.model_id, None)
        if model is None:
            return
        if model.phase in LEAVING:
            model.vanish()
            return
        model.fail(_failure(report))
        log.warning("load failed", model=model.id, code=report.code, error=report.message)

    def _take_unloaded(self, report: channel.ModelUnloaded) -> None:
        self._silence.note_load_over(report.model_id)
        model = self.models.get(report.model_id)
        if model is not None:
            self._unreported_bytes -= model.ready.memory_bytes if model.ready else 0
            self._drop(model)

    def _drop(self, model: ModelState) -> None:
        """Take a model off this device: what it still ran ends here."""
        self.models.pop(model.id, None)
        for request in list(model.requests.values()):
            self._end_request(request, "the model was unloaded", ErrorCode.MODEL_NOT_LOADED)
        model.vanish()

    # --- breakdowns ------------------------------------------------------------------------------

    def _break_down(self, breakdown: Breakdown) -> None:
        """Tell everybody who relied on the process. Nothing here waits."""
        self._broken, self.started, self.report = breakdown, None, None
        self._silence = Silence(self._watchdog)
        models = tuple(self.models)
        self._end_requests(f"the device failed: {breakdown.kind}")
        for model in list(self.models.values()):
            self._interrupt(model)
        self._begun.clear()  # a process that dies before it has started is no model's fault
        self._note_fault(breakdown.kind, breakdown.error, models)

    def _interrupt(self, model: ModelState) -> None:
        had_begun = model.id in self._begun
        if had_begun and model.phase in _LOADING:
            model.num_interruptions += 1
        model.report = None
        match fate_of_model(model.phase, had_begun, model.num_interruptions):
            case Fate.GONE:
                self._drop(model)
            case Fate.FAILED:
                self._fail_model(model, "its load ends the device process every time")
            case Fate.RECOVERING if model.phase is not ModelPhase.RECOVERING:
                model.move(ModelPhase.RECOVERING)
            case Fate.RECOVERING | Fate.WAITING:
                pass  # loaded by the next process, as it would have been anyway

    def _count_fault(self) -> float:
        """Return the seconds to wait before the next process; give up after too many faults."""
        now = time.monotonic()
        self._fault_times = recent([*self._fault_times, now], now, self._watchdog)
        if is_given_up(len(self._fault_times), self._watchdog):
            self.has_given_up = True
            log.error("device given up", device=self.spec.torch_name)
            return 0.0
        return backoff_seconds(len(self._fault_times), self._watchdog)

    def _abandon_models(self) -> None:
        for model in list(self.models.values()):
            if model.phase in LEAVING:
                self._drop(model)
            else:
                self._fail_model(model, "the neuron gave up this device after repeated faults")

    def _fail_model(self, model: ModelState, message: str) -> None:
        self.models.pop(model.id, None)
        model.fail(LoadFailure(ErrorCode.DEVICE_FAULT, message))

    def _end_requests(self, error: str) -> None:
        for request in list(self.requests.values()):
            self._end_request(request, error)

    def _end_request(
        self, request: RunningRequest, error: str, code: str = ErrorCode.DEVICE_FAULT
    ) -> None:
        self._forget(request)
        request.outputs.put_nowait(
            channel.Output(request.id, [], finish="device_fault", error_code=code, error=error)
        )

    def _forget(self, request: RunningRequest) -> None:
        """Give a request's place back: a caller who reads the rest slowly takes no room.

        One that keeps its place gives it back itself.
        """
        self.requests.pop(request.id, None)
        if not request.keeps_place:
            request.model.release(request)

    def _note_fault(self, kind: str, error: str, models: tuple[str, ...]) -> None:
        log.error("fault", device=self.spec.torch_name, kind=kind, error=error, models=models)
        self.num_faults[kind] += 1
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._record_fault(Fault(at, self.index, kind, error, models, self.spec.driver))


def _failure(report: channel.LoadFailed) -> LoadFailure:
    return LoadFailure(
        code=report.code,
        message=report.message,
        hint=report.hint,
        # Rounded so that whoever finds so much free has really enough.
        needed_mb=None if report.needed_bytes is None else -(-report.needed_bytes // MEGABYTE),
        free_mb=None if report.free_bytes is None else report.free_bytes // MEGABYTE,
    )
