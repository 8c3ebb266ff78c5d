"""The real device process over a socket pair, with a tiny model on the CPU."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from neuron_agent.devices.channel import (
    Cancel,
    Command,
    DeviceReport,
    FrameSplitter,
    LoadFailed,
    LoadModel,
    ModelLoading,
    ModelReady,
    ModelUnloaded,
    Output,
    Outputs,
    Report,
    Sampling,
    Shutdown,
    Started,
    Submit,
    UnloadModel,
    decode_report,
    encode,
)
from neuron_agent.devices.process import parse_options
from neuron_agent.protocol import ErrorCode
from tests.neuron_agent.engine.workbench import reference
from tests.neuron_agent.tiny_models import save_tiny

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 60.0
MEMORY_MB = 40
GREEDY = Sampling(temperature=0.0)

ReportT = TypeVar("ReportT", bound=DeviceReport)


class DeviceProcess:
    """The parent's end. Every wait has a deadline."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(PATIENCE_SECONDS)
        arguments = ["--fd", str(theirs.fileno()), "--device", "cpu:0", "--threads", "1"]
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "neuron_agent.devices.process",
                *arguments,
                "--memory-mb",
                str(MEMORY_MB),
            ],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self._frames = FrameSplitter()
        self._unread: list[DeviceReport] = []

    def tell(self, *commands: Command) -> None:
        for command in commands:
            self.socket.sendall(encode(command))

    def next(self) -> DeviceReport:
        while not self._unread:
            data = self.socket.recv(1 << 16)
            assert data, "the device process closed its end"
            self._unread += [decode_report(body) for body in self._frames.feed(data)]
        return self._unread.pop(0)

    def until(
        self, kind: type[ReportT], accept: Callable[[ReportT], bool] = lambda _: True
    ) -> ReportT:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            report = self.next()
            if isinstance(report, kind) and accept(report):
                return report
        raise AssertionError(f"no {kind.__name__} came")

    def outputs_of(self, request_id: str) -> Iterator[Output]:
        while True:
            for output in self.until(Outputs).outputs:
                if output.request_id == request_id:
                    yield output
                    if output.finish is not None:
                        return

    def stop(self) -> None:
        self.socket.close()
        self.process.wait(PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def shared_device() -> Iterator[DeviceProcess]:
    device = DeviceProcess()
    started = device.until(Started)
    assert started.memory_total_bytes == MEMORY_MB * 2**20
    yield device
    device.stop()


@pytest.fixture
def device(shared_device: DeviceProcess, folder: Path) -> Iterator[DeviceProcess]:
    """A device with one model, `m`, which is taken off again."""
    shared_device.tell(LoadModel("m", str(folder), dtype="float32"))
    shared_device.until(ModelReady)
    yield shared_device
    shared_device.tell(UnloadModel("m"))
    shared_device.until(ModelUnloaded)


def submit(name: str, prompt: list[int], max_tokens: int = 10) -> Submit:
    return Submit(name, "m", prompt, max_tokens, [], GREEDY)


def test_a_load_goes_through_its_stages(shared_device: DeviceProcess, folder: Path) -> None:
    shared_device.tell(LoadModel("m", str(folder)))
    stages = []
    while not isinstance(report := shared_device.next(), ModelReady):
        if isinstance(report, ModelLoading):
            stages.append(report.stage)
    assert stages == ["reading", "preparing", "warming"]
    assert 0 < report.memory_bytes <= MEMORY_MB * 2**20
    shared_device.tell(UnloadModel("m"))
    shared_device.until(ModelUnloaded)
    empty = shared_device.until(Report)
    assert (empty.memory_used_bytes, empty.models) == (0, [])


def test_it_generates_what_generate_does(device: DeviceProcess) -> None:
    device.tell(submit("one", [1, 2, 3]))
    ids = [token for output in device.outputs_of("one") for token in output.token_ids]
    assert ids == reference("qwen3", (1, 2, 3), 10)


def test_a_cancelled_request_ends_and_frees_its_place(device: DeviceProcess) -> None:
    device.tell(submit("long", [1, 2, 3], max_tokens=500))
    outputs = device.outputs_of("long")
    next(outputs)
    device.tell(Cancel("long"))
    assert list(outputs)[-1].finish == "cancelled"
    report = device.until(Report)
    assert (report.models[0].running, report.models[0].kv_used_ratio) == (0, 0.0)


def test_a_wrong_token_fails_its_request_alone(device: DeviceProcess) -> None:
    device.tell(submit("wrong", [10**6]), submit("right", [4, 5]))
    wrong = next(device.outputs_of("wrong"))
    assert (wrong.finish, wrong.error_code) == ("error", ErrorCode.INVALID_REQUEST)
    ids = [token for output in device.outputs_of("right") for token in output.token_ids]
    assert ids == reference("qwen3", (4, 5), 10)


def test_a_second_model_fits_after_an_unload(device: DeviceProcess, folder: Path) -> None:
    """The first model's cache takes what is there; the second's least need is more than is left."""
    big = LoadModel("big", str(folder), dtype="float32", max_in_flight=3000)
    device.tell(big)
    refused = device.until(LoadFailed)
    assert refused.code == ErrorCode.DOES_NOT_FIT
    assert refused.needed_bytes is not None
    assert refused.free_bytes is not None
    assert refused.needed_bytes > refused.free_bytes
    device.tell(UnloadModel("m"), big)
    assert device.until(ModelReady).model_id == "big"
    device.tell(UnloadModel("big"))


def test_the_device_thread_is_named_for_its_device(shared_device: DeviceProcess) -> None:
    tasks = Path(f"/proc/{shared_device.process.pid}/task")
    names = [(task / "comm").read_text().strip() for task in tasks.iterdir()]
    assert "cpu-dev-0" in names


def test_it_ends_when_told_and_when_its_parent_is_gone(folder: Path) -> None:
    told, orphaned = DeviceProcess(), DeviceProcess()
    told.until(Started)
    told.tell(Shutdown())
    assert told.process.wait(PATIENCE_SECONDS) == 0
    told.socket.close()
    orphaned.until(Started)
    # In the middle of work, too: nobody is left to want it.
    orphaned.tell(LoadModel("m", str(folder)), submit("long", [1], max_tokens=500))
    orphaned.until(ModelLoading)
    orphaned.stop()
    assert orphaned.process.returncode == 0


def test_nonsense_on_the_channel_ends_it() -> None:
    device = DeviceProcess()
    device.until(Started)
    device.socket.sendall(b"\xff" * 64)
    assert device.process.wait(PATIENCE_SECONDS) != 0
    device.socket.close()


@pytest.mark.parametrize(
    ("option", "value"), [("--device", "gpu"), ("--memory-mb", "0"), ("--threads", "-1")]
)
def test_a_wrong_command_line_is_explained(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_options(["--fd", "0", "--device", "cpu:0", option, value])
    assert caught.value.code == 2
    assert option in capsys.readouterr().err


def test_the_command_line_names_the_device() -> None:
    gpu = parse_options(["--fd", "3", "--device", "cuda:2"])
    assert (gpu.thread_name, str(gpu.torch_device)) == ("cuda-dev-2", "cuda:2")
    alone = parse_options(["--fd", "3", "--device", "cuda:0", "--index", "2"])
    assert (alone.thread_name, str(alone.torch_device)) == ("cuda-dev-2", "cuda:0")
    second = parse_options(["--fd", "3", "--device", "cpu:1", "--memory-mb", "2"])
    assert (second.thread_name, str(second.torch_device)) == ("cpu-dev-1", "cpu")
    assert (second.memory_bytes, second.num_threads) == (2 * 2**20, None)
