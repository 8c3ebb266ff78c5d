"""What devices a neuron offers, with and without GPUs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.config import DevicesConfig
from neuron_agent.devices.inventory import choose_visible, read_sensors, take_inventory

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
