"""What a device remembers and notes, without a process."""

from pathlib import Path

import pytest

from neuron_agent.config import NeuronConfig, WatchdogConfig
from neuron_agent.devices import channel
from neuron_agent.devices.inventory import DeviceSpec
from neuron_agent.managed_device import ManagedDevice
from neuron_agent.model_state import ModelState
from neuron_agent.protocol import DeviceFacts, Fault, LoadRequest, ModelPhase

SPEC = DeviceSpec(DeviceFacts(0, "a GPU", "cuda", 1000), 0, uuid="GPU-a", driver="550.1")
WITHOUT_PROCESS = NeuronConfig(
    device_command=("/nowhere/to/be/found",), watchdog=WatchdogConfig(max_faults=1)
)


def new_model() -> ModelState:
    return ModelState(LoadRequest("m"), max_in_flight=1, max_queue_depth=0)


def test_place_is_given_back_when_the_device_is_done_though_nobody_reads() -> None:
    device = ManagedDevice(SPEC, WITHOUT_PROCESS, {}, lambda _: None)
    model = new_model()
    model.phase = ModelPhase.READY
    request = model.admit("req-1", "mine")
    device.requests[request.id] = request
    device._take(channel.Outputs([channel.Output(request.id, [5])]))
    assert list(model.requests) == [request.id]
    device._take(channel.Outputs([channel.Output(request.id, [6], finish="stop")]))
    assert not model.requests
    assert not device.requests
    assert [request.outputs.get_nowait().token_ids for _ in range(2)] == [[5], [6]]


async def test_fault_ledger_names_the_driver() -> None:
    faults: list[Fault] = []
    device = ManagedDevice(SPEC, WITHOUT_PROCESS, {}, faults.append)
    await device.run()
    assert [(fault.kind, fault.driver) for fault in faults] == [("died", "550.1")]


def test_load_that_cannot_be_sent_leaves_no_ghost() -> None:
    device = ManagedDevice(SPEC, WITHOUT_PROCESS, {}, lambda _: None)
    model = new_model()
    model.folder = Path("a name that is no text: \udcff")
    with pytest.raises(UnicodeEncodeError):
        device.load(model)
    assert device.models == {}
    assert model.device_index is None
