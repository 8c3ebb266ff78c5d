"""What devices a neuron offers, with and without GPUs."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.config import DevicesConfig
from neuron_agent.devices.inventory import (
    Inventory,
    Sensors,
    choose_visible,
    read_sensors,
    take_inventory,
)

NO_GPU = DevicesConfig(cuda=False)
UUIDS = ["GPU-aa", "GPU-ab", "GPU-b"]


def test_host_without_gpu_has_one_cpu_device_all_the_same() -> None:
    inventory = take_inventory(NO_GPU, {})
    (device,) = inventory.devices
    assert device.torch_name == "cpu:0"
    assert device.facts.vram_total_mb > 0
    assert device.threads >= 1
    assert inventory.cuda_unavailable_reason


def test_declared_cpu_devices_have_their_budget_each() -> None:
    config = DevicesConfig(cuda=False, cpu=3, cpu_memory_mb=400, threads=2)
    devices = take_inventory(config, {}).devices
    assert [device.torch_name for device in devices] == ["cpu:0", "cpu:1", "cpu:2"]
    assert [device.facts.index for device in devices] == [0, 1, 2]
    assert {device.facts.vram_total_mb for device in devices} == {400}
    assert {device.threads for device in devices} == {2}


def test_cpu_devices_have_no_sensors() -> None:
    assert read_sensors(take_inventory(NO_GPU, {}).devices) == {}


class Nvml:
    """A driver with GPUs by number; a question in `refusals` fails for that GPU."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, *refusals: tuple[str, str]) -> None:
        self._refusals = refusals

    def _answer(self, question: str, uuid: str, answer: Any) -> Any:
        if (question, uuid) in self._refusals:
            raise self.NVMLError(question)
        return answer

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return len(UUIDS)

    def nvmlSystemGetDriverVersion(self) -> str:
        return "550.1"

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return 12040

    def nvmlDeviceGetHandleByIndex(self, number: int) -> str:
        return str(self._answer("handle", UUIDS[number], UUIDS[number]))

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return str(self._answer("handle", uuid, uuid))

    def nvmlDeviceGetUUID(self, handle: str) -> bytes:
        return str(self._answer("uuid", handle, handle)).encode()

    def nvmlDeviceGetName(self, handle: str) -> str:
        return f"name of {handle}"

    def nvmlDeviceGetCudaComputeCapability(self, handle: str) -> tuple[int, int]:
        return 9, 0

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return self._answer("memory", handle, SimpleNamespace(total=2**30))

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        return self._answer("rates", handle, SimpleNamespace(gpu=7))

    def nvmlDeviceGetTemperature(self, handle: str, _sensor: int) -> int:
        return int(self._answer("temperature", handle, 40))

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return int(self._answer("power", handle, 90_000))


def gpus(monkeypatch: pytest.MonkeyPatch, nvml: Nvml, **environment: str) -> Inventory:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return take_inventory(DevicesConfig(), environment)


def test_gpus_are_found_with_their_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    inventory = gpus(monkeypatch, Nvml())
    assert [device.uuid for device in inventory.devices] == UUIDS
    assert [device.torch_name for device in inventory.devices] == ["cuda:0", "cuda:1", "cuda:2"]
    assert {device.driver for device in inventory.devices} == {"550.1"}
    assert (inventory.driver, inventory.cuda) == ("550.1", "12.4")


@pytest.mark.parametrize("question", ["handle", "uuid", "memory"])
def test_sick_gpu_hides_only_itself(monkeypatch: pytest.MonkeyPatch, question: str) -> None:
    inventory = gpus(monkeypatch, Nvml((question, UUIDS[0])))
    assert [device.uuid for device in inventory.devices] == UUIDS[1:]
    assert [device.facts.index for device in inventory.devices] == [0, 1]
    visible = gpus(monkeypatch, Nvml((question, UUIDS[0])), CUDA_VISIBLE_DEVICES="0,2")
    assert [device.uuid for device in visible.devices] == [UUIDS[2]]


def test_host_whose_gpus_are_all_sick_says_so_and_computes_on_its_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inventory = gpus(monkeypatch, Nvml(*(("handle", uuid) for uuid in UUIDS)))
    assert [device.facts.kind for device in inventory.devices] == ["cpu"]
    assert inventory.cuda_unavailable_reason is not None


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("rates", Sensors(None, 40, 90.0)),
        ("temperature", Sensors(7, None, 90.0)),
        ("power", Sensors(7, 40, None)),
        ("handle", Sensors()),
    ],
)
def test_sensor_that_is_silent_hides_no_other(
    monkeypatch: pytest.MonkeyPatch, question: str, expected: Sensors
) -> None:
    devices = gpus(monkeypatch, Nvml()).devices
    monkeypatch.setitem(sys.modules, "pynvml", Nvml((question, UUIDS[1])))
    whole = Sensors(7, 40, 90.0)
    assert read_sensors(devices) == {0: whole, 1: expected, 2: whole}


@pytest.mark.parametrize(
    ("visible", "chosen"),
    [
        (None, UUIDS),
        ("", []),
        ("1", ["GPU-ab"]),
        ("2,0", ["GPU-b", "GPU-aa"]),
        ("GPU-b", ["GPU-b"]),
        ("GPU-a", []),  # says two of them
        ("0,-1,1", ["GPU-aa"]),
        ("7", []),
    ],
)
def test_visible_devices_are_what_cuda_would_see(visible: str | None, chosen: list[str]) -> None:
    assert choose_visible(UUIDS, visible) == chosen


@given(st.text())
def test_any_nonsense_in_the_variable_chooses_known_devices(visible: str) -> None:
    assert set(choose_visible(UUIDS, visible)) <= set(UUIDS)
