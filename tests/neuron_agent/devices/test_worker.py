"""The worker is driven in this thread: a clock that jumps, a device that fails on demand."""

import queue
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import pytest

from neuron_agent.devices.channel import (
    Cancel,
    Command,
    DeviceReport,
    LoadFailed,
    LoadModel,
    ModelLoading,
    ModelReady,
    ModelReport,
    ModelUnloaded,
    OutOfMemory,
    Output,
    Outputs,
    Poisoned,
    Report,
    Shutdown,
    Started,
    Submit,
    UnloadModel,
)
from neuron_agent.devices.worker import Worker
from neuron_agent.engine.refusals import LoadRefused, RequestRefused
from neuron_agent.protocol import ErrorCode

STICKY = RuntimeError("CUDA error: an illegal memory access was encountered")
FULL = MemoryError("no room")
OURS = ValueError("a mistake of ours")

ReportT = TypeVar("ReportT", bound=DeviceReport)


@dataclass(frozen=True)
class FakeLimits:
    context_tokens: int = 100
    kv_tokens: int = 200
    memory_bytes: int = 300
    needed_bytes: int = 250
    dtype: str = "float32"
    quant: str | None = "int8"


class FakeEngine:
    """Gives each request one token a step; raises what is put into `faults`, one a step."""

    limits = FakeLimits()
    is_slow_lane = False

    def __init__(self, model_id: str) -> None:
        self.model_id = model_id
        self.left: dict[str, int] = {}
        self.faults: deque[Exception] = deque()
        self.is_closed = False
        self.num_dropped = 0

    @property
    def has_work(self) -> bool:
        return bool(self.left)

    def add(self, submit: Submit) -> None:
        if submit.prompt_ids == [0]:
            raise RequestRefused(ErrorCode.INVALID_REQUEST, "no zeros")
        if submit.prompt_ids == [1]:
            raise OURS
        self.left[submit.request_id] = submit.max_tokens

    def cancel(self, request_id: str) -> Output | None:
        return Output(request_id, [], finish="cancelled") if self.left.pop(request_id, 0) else None

    def step(self) -> list[Output]:
        if self.faults:
            raise self.faults.popleft()
        return [self._token(request_id) for request_id in list(self.left)]

    def _token(self, request_id: str) -> Output:
        self.left[request_id] -= 1
        is_last = self.left[request_id] == 0
        if is_last:
            del self.left[request_id]
        return Output(request_id, [5], finish="length" if is_last else None)

    def drop_prefixes(self) -> None:
        self.num_dropped += 1

    def give_up_one(self, code: ErrorCode, message: str) -> Output | None:
        if not self.left:
            return None
        request_id, _ = self.left.popitem()
        return Output(request_id, [], finish="error", error_code=code, error=message)

    def report(self) -> ModelReport:
        return ModelReport(self.model_id, running=len(self.left), waiting=0)

    def close(self) -> None:
        self.is_closed = True


@dataclass
class FakeDevice:
    engines: dict[str, FakeEngine] = field(default_factory=dict)
    load_fault: Exception | None = None
    memory_fault: Exception | None = None
    num_emptied: int = 0
    reclaimed: list[str] = field(default_factory=list)

    def bind(self) -> Started:
        return Started(memory_total_bytes=1000, torch_version="0", transformers_version="0")

    def load(
        self, command: LoadModel, progress: Callable[[str, float, int, int], None]
    ) -> FakeEngine:
        progress("reading", 0.0, 0, 10)
        if self.load_fault is not None:
            raise self.load_fault
        engine = self.engines[command.model_id] = FakeEngine(command.model_id)
        return engine

    def reclaim(self, model_id: str) -> None:
        self.reclaimed.append(model_id)

    def memory(self) -> tuple[int, int]:
        if self.memory_fault is not None:
            raise self.memory_fault
        return 400, 600

    def empty_caches(self) -> None:
        self.num_emptied += 1


class Bench:
    """A worker whose loop ends by itself: after `rounds` looks at the clock it is told to."""

    def __init__(self) -> None:
        self.device = FakeDevice()
        self.sent: list[DeviceReport] = []
        self._mailbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._now = 0.0
        self.worker = Worker(self.device, self._mailbox, self.sent.append, self._clock)

    def _clock(self) -> float:
        self._now += 0.25
        return self._now

    def tell(self, *commands: Command) -> None:
        """Obey the commands and go on until no model has work."""
        for command in commands:
            self._mailbox.put(command)
        self.worker._obey_mailbox()
        while self.worker._has_work:
            self.worker._step_engines()

    def step(self) -> None:
        self.worker._step_engines()

    def obey(self, *commands: Command) -> None:
        """Obey the commands without a step."""
        for command in commands:
            self._mailbox.put(command)
        self.worker._obey_mailbox()

    def run_to_the_end(self, *commands: Command) -> None:
        for command in (*commands, Shutdown()):
            self._mailbox.put(command)
        self.worker.run()

    def of(self, kind: type[ReportT]) -> list[ReportT]:
        return [report for report in self.sent if isinstance(report, kind)]

    def outputs(self, request_id: str) -> list[Output]:
        outputs = [output for report in self.of(Outputs) for output in report.outputs]
        return [output for output in outputs if output.request_id == request_id]

    def finish(self, request_id: str) -> Output:
        """The one output that ended a request."""
        ends = [output for output in self.outputs(request_id) if output.finish is not None]
        assert len(ends) == 1, f"{request_id} ended {len(ends)} times"
        return ends[0]

    def assert_serves(self, name: str = "afterwards") -> None:
        self.tell(submit(name))
        assert self.finish(name).finish == "length"


def load(model_id: str = "m") -> LoadModel:
    return LoadModel(model_id, folder="/nowhere")


def submit(request_id: str, model_id: str = "m", prompt: list[int] | None = None) -> Submit:
    return Submit(request_id, model_id, prompt or [9], max_tokens=3, stop_ids=[])


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.tell(load())
    return bench


# --- the usual ---------------------------------------------------------------------------------


def test_a_run_starts_with_started_and_ends_when_told() -> None:
    bench = Bench()
    bench.run_to_the_end(load())
    assert isinstance(bench.sent[0], Started)
    assert len(bench.of(ModelReady)) == 1


def test_a_load_tells_its_stages_then_that_it_is_ready(bench: Bench) -> None:
    kinds = [type(report) for report in bench.sent]
    assert kinds == [ModelLoading, ModelReady]
    ready = bench.of(ModelReady)[0]
    assert (ready.context_tokens, ready.kv_tokens, ready.memory_bytes) == (100, 200, 300)
    assert (ready.needed_bytes, ready.quant) == (250, "int8")
    assert ready.load_seconds > 0


def test_the_outputs_of_a_step_leave_in_one_message(bench: Bench) -> None:
    bench.obey(submit("a"), submit("b"))
    bench.step()
    assert [len(report.outputs) for report in bench.of(Outputs)] == [2]


def test_a_report_goes_out_while_nothing_happens(bench: Bench) -> None:
    bench.worker._report()
    report = bench.of(Report)[0]
    assert (report.memory_used_bytes, report.memory_free_bytes) == (400, 600)
    assert [model.model_id for model in report.models] == ["m"]


def test_a_load_or_an_unload_brings_the_next_report_forward(bench: Bench) -> None:
    for command in (load("n"), UnloadModel("n")):
        bench.worker._report()
        num_reports = len(bench.of(Report))
        bench.tell(command)
        bench.worker._report_if_due()
        assert len(bench.of(Report)) == num_reports + 1


def test_no_report_goes_out_before_it_is_due(bench: Bench) -> None:
    bench.worker._report()
    bench.worker._report_if_due()
    assert len(bench.of(Report)) == 1


def test_an_idle_worker_waits_no_longer_than_its_next_report(bench: Bench) -> None:
    bench.worker._report_due_at = 0.0
    assert bench.worker._first_command() is None


def test_two_models_step_in_turn(bench: Bench) -> None:
    bench.tell(load("n"), submit("a"), submit("b", "n"))
    assert bench.finish("a").finish == bench.finish("b").finish == "length"


def test_a_cancelled_request_gives_no_token_after(bench: Bench) -> None:
    bench.obey(submit("a"))
    bench.step()
    bench.obey(Cancel("a"))
    bench.step()
    assert [output.finish for output in bench.outputs("a")] == [None, "cancelled"]


def test_cancelling_what_ended_is_silent(bench: Bench) -> None:
    bench.tell(submit("a"), Cancel("b"))
    bench.tell(Cancel("a"))
    assert bench.finish("a").finish == "length"


def test_an_unload_cancels_frees_and_says_so(bench: Bench) -> None:
    engine = bench.device.engines["m"]
    bench.obey(submit("a"), UnloadModel("m"))
    assert bench.finish("a").finish == "cancelled"
    assert engine.is_closed
    assert bench.device.reclaimed == ["m"]
    assert bench.of(ModelUnloaded) == [ModelUnloaded("m")]
    bench.tell(submit("b"))
    assert bench.finish("b").error_code == ErrorCode.MODEL_NOT_LOADED


def test_unloading_the_unknown_is_answered(bench: Bench) -> None:
    bench.tell(UnloadModel("nobody"))
    assert bench.of(ModelUnloaded) == [ModelUnloaded("nobody")]
    assert bench.device.reclaimed == []


def test_a_model_is_not_loaded_twice(bench: Bench) -> None:
    bench.tell(load())
    assert bench.of(LoadFailed)[0].code == ErrorCode.LOADED_WITH_OTHER_OPTIONS
    bench.assert_serves()


# --- faults ------------------------------------------------------------------------------------


def test_a_refused_request_says_why_and_hurts_nobody(bench: Bench) -> None:
    bench.tell(submit("bad", prompt=[0]))
    assert bench.finish("bad").error_code == ErrorCode.INVALID_REQUEST
    assert bench.finish("bad").error == "no zeros"
    bench.assert_serves()


def test_a_mistake_of_ours_in_taking_a_request_in_fails_that_request(bench: Bench) -> None:
    bench.tell(submit("good"), submit("bad", prompt=[1]))
    assert bench.finish("bad").error_code == ErrorCode.REQUEST_FAILED
    assert bench.finish("good").finish == "length"


def test_a_mistake_of_ours_in_a_step_fails_one_request(bench: Bench) -> None:
    bench.device.engines["m"].faults.append(OURS)
    bench.tell(submit("a"), submit("b"))
    assert bench.finish("a").finish == "length"
    assert bench.finish("b").error_code == ErrorCode.REQUEST_FAILED
    assert bench.of(Poisoned) == []


def test_no_text_of_an_error_reaches_the_client(bench: Bench) -> None:
    bench.device.engines["m"].faults.append(ValueError("/home/somebody/secret"))
    bench.tell(submit("a"))
    assert "secret" not in str(bench.finish("a"))


def test_out_of_memory_fails_one_request_and_empties_caches(bench: Bench) -> None:
    bench.device.engines["m"].faults.append(FULL)
    bench.tell(submit("a"), submit("b"))
    assert bench.finish("a").finish == "length"
    assert bench.finish("b").finish == "error"
    assert bench.device.num_emptied == 1
    assert bench.of(OutOfMemory)[0].model_id == "m"
    bench.assert_serves()


def test_out_of_memory_takes_what_any_model_keeps_for_reuse(bench: Bench) -> None:
    bench.tell(load("n"))
    bench.device.engines["m"].faults.append(FULL)
    bench.tell(submit("a"))
    assert [engine.num_dropped for engine in bench.device.engines.values()] == [1, 1]


def test_a_sticky_error_ends_all_requests_and_refuses_later_ones(bench: Bench) -> None:
    bench.tell(load("n"))
    bench.obey(submit("a"), submit("b", "n"))
    bench.device.engines["m"].faults.append(STICKY)
    bench.step()
    assert bench.finish("a").finish == bench.finish("b").finish == "device_fault"
    assert bench.of(Poisoned)[0].models == ["m", "n"]
    bench.tell(submit("late"), Cancel("late"))
    assert bench.finish("late").error_code == ErrorCode.DEVICE_FAULT


def test_a_poisoned_device_is_touched_no_more(bench: Bench) -> None:
    bench.obey(submit("a"))
    bench.device.engines["m"].faults.append(STICKY)
    bench.step()
    bench.tell(UnloadModel("m"), load("n"))
    bench.device.memory_fault = AssertionError("touched")
    bench.worker._report()
    assert not bench.device.engines["m"].is_closed
    assert bench.device.reclaimed == []
    assert bench.device.num_emptied == 0
    assert bench.of(LoadFailed)[0].code == ErrorCode.DEVICE_FAULT
    assert len(bench.of(Report)) == 1, "it still reports: the parent sees that it lives"
    assert len(bench.of(Poisoned)) == 1


def test_a_device_that_cannot_report_its_memory_is_judged(bench: Bench) -> None:
    bench.obey(submit("a"))
    bench.device.memory_fault = STICKY
    bench.worker._report()
    assert bench.finish("a").finish == "device_fault"
    assert len(bench.of(Poisoned)) == 1


def test_a_step_that_fails_without_requests_ends_the_thread(bench: Bench) -> None:
    engine = bench.device.engines["m"]
    bench.obey(submit("a"))
    engine.faults.append(OURS)
    engine.give_up_one = lambda code, message: None  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        bench.step()


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (LoadRefused(ErrorCode.EMPTY_REPO, "nothing there", hint="look"), ErrorCode.EMPTY_REPO),
        (FULL, ErrorCode.DOES_NOT_FIT),
        (OURS, ErrorCode.LOAD_FAILED),
    ],
)
def test_a_failed_load_says_why(bench: Bench, fault: Exception, code: ErrorCode) -> None:
    bench.device.load_fault = fault
    bench.tell(load("n"))
    assert [failed.code for failed in bench.of(LoadFailed)] == [code]
    assert len(bench.of(ModelReady)) == 1, "the first model's alone"


def test_a_poison_during_a_load_does_not_fail_the_model(bench: Bench) -> None:
    """The front counts it as it would count a death: the next process may load the model."""
    bench.device.load_fault = STICKY
    bench.tell(load("n"))
    assert bench.of(LoadFailed) == []
    assert len(bench.of(Poisoned)) == 1


@pytest.mark.parametrize("fault", [FULL, OURS, LoadRefused(ErrorCode.DOES_NOT_FIT, "too big")])
def test_a_failed_load_leaves_the_other_models_alone(bench: Bench, fault: Exception) -> None:
    bench.device.load_fault = fault
    bench.tell(load("n"))
    assert bench.device.num_emptied == 1
    bench.assert_serves()


def test_a_refusal_brings_its_numbers(bench: Bench) -> None:
    bench.device.load_fault = LoadRefused(
        ErrorCode.DOES_NOT_FIT, "too big", hint="smaller", needed_bytes=2, free_bytes=1
    )
    bench.tell(load("n"))
    failed = bench.of(LoadFailed)[0]
    assert (failed.needed_bytes, failed.free_bytes, failed.hint) == (2, 1, "smaller")
