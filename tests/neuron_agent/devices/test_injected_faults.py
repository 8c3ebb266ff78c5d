"""Every row of the fault table, raised by the forward pass of a real engine under a real worker."""

import queue
from collections.abc import Callable
from itertools import count

import pytest

from neuron_agent.devices.channel import (
    Command,
    DeviceReport,
    LoadModel,
    OutOfMemory,
    Output,
    Outputs,
    Poisoned,
    Started,
    Submit,
)
from neuron_agent.devices.faults import TABLE, FaultKind, Row
from neuron_agent.devices.worker import Worker
from neuron_agent.engine.engine import Engine
from neuron_agent.engine.forwards.forward import Computed, PackedForward
from neuron_agent.engine.forwards.slot_cache import SlotCache
from neuron_agent.scheduling.batch import Batch
from tests.neuron_agent.devices.test_faults import EXAMPLES
from tests.neuron_agent.engine.workbench import PROMPTS, engine_over, reference, submit
from tests.neuron_agent.tiny_models import build_tiny


class FaultyForward(PackedForward):
    """Raises `fault` once, after the pass: the cache has been written to by then."""

    fault: Exception | None = None
    num_computed = 0

    def compute(self, batch: Batch) -> Computed:
        computed = super().compute(batch)
        self.num_computed += 1
        fault, self.fault = self.fault, None
        if fault is not None:
            raise fault
        return computed


class TinyDevice:
    """Loads the tiny model under any name."""

    def __init__(self) -> None:
        self.forwards: dict[str, FaultyForward] = {}
        self.num_emptied = 0

    def bind(self) -> Started:
        return Started(memory_total_bytes=1000, torch_version="0", transformers_version="0")

    def load(self, command: LoadModel, progress: Callable[[str, float, int, int], None]) -> Engine:
        forward = FaultyForward(build_tiny("qwen3"), SlotCache())
        self.forwards[command.model_id] = forward
        return engine_over(forward)

    def reclaim(self, model_id: str) -> None: ...

    def memory(self) -> tuple[int, int]:
        return 400, 600

    def empty_caches(self) -> None:
        self.num_emptied += 1


class Bench:
    """A worker with two models, m and n, and three requests that have begun: two of m, one of n."""

    def __init__(self) -> None:
        self.device = TinyDevice()
        self.sent: list[DeviceReport] = []
        self.outputs: dict[str, list[Output]] = {}
        self._mailbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        ticks = count()
        self.worker = Worker(self.device, self._mailbox, self._receive, lambda: float(next(ticks)))
        self.tell(LoadModel("m", ""), LoadModel("n", ""))
        self.tell(submit("first", PROMPTS[1]), submit("second", PROMPTS[2]))
        self.tell(of_model("n", submit("other", PROMPTS[1])))
        self.worker._step_engines()

    def _receive(self, report: DeviceReport) -> None:
        self.sent.append(report)
        for output in report.outputs if isinstance(report, Outputs) else []:
            self.outputs.setdefault(output.request_id, []).append(output)

    def tell(self, *commands: Command) -> None:
        for command in commands:
            self._mailbox.put(command)
        self.worker._obey_mailbox()

    def finish_all(self) -> None:
        while self.worker._has_work:
            self.worker._step_engines()

    def ends(self) -> dict[str, str | None]:
        return {name: outputs[-1].finish for name, outputs in self.outputs.items()}

    def tokens(self, name: str) -> list[int]:
        return [token for output in self.outputs[name] for token in output.token_ids]


def of_model(model_id: str, submitted: Submit) -> Submit:
    return Submit(
        submitted.request_id,
        model_id,
        submitted.prompt_ids,
        submitted.max_tokens,
        submitted.stop_ids,
        submitted.sampling,
    )


@pytest.mark.parametrize(
    ("row", "error"), list(zip(TABLE, EXAMPLES, strict=True)), ids=[row.pattern for row in TABLE]
)
def test_a_fault_hits_what_it_must_and_nothing_else(row: Row, error: Exception) -> None:
    bench = Bench()
    bench.device.forwards["m"].fault = error
    bench.finish_all()
    bench.tell(submit("late", PROMPTS[1]))
    bench.finish_all()
    num_computed = {name: one.num_computed for name, one in bench.device.forwards.items()}
    if row.kind is FaultKind.POISON:
        assert set(bench.ends().values()) == {"device_fault"}
        assert [report.models for report in bench.sent if isinstance(report, Poisoned)] == [
            ["m", "n"]
        ]
        assert bench.device.num_emptied == 0
        assert num_computed == {"m": 2, "n": 1}, "the device is touched no more"
        return
    assert bench.ends() == {
        "first": "length",
        "second": "error",  # the youngest of the step
        "other": "length",
        "late": "length",
    }
    expected = reference("qwen3", tuple(PROMPTS[1]), 12)
    assert bench.tokens("first") == bench.tokens("other") == bench.tokens("late") == expected
    assert not [report for report in bench.sent if isinstance(report, Poisoned)]
    is_memory = row.kind is FaultKind.OUT_OF_MEMORY
    assert bench.device.num_emptied == int(is_memory)
    assert len([report for report in bench.sent if isinstance(report, OutOfMemory)]) == is_memory
