"""What devices this host has and how they feel: NVML's facts for GPUs, the budget for CPU devices.

It runs in the front process and never touches a device: NVML reads the driver, no CUDA context is
made. It knows neither models nor processes.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from neuron_agent.config import DevicesConfig
from neuron_agent.protocol import DeviceFacts

MEGABYTE = 2**20


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A device this neuron will use: what it is, and what its process is told."""

    facts: DeviceFacts
    ordinal: int
    """Its number among the devices of its kind: N of `cuda:N` and `cpu:N`."""
    threads: int = 1
    uuid: str | None = None

    @property
    def torch_name(self) -> str:
        return f"{self.facts.kind}:{self.ordinal}"

    @property
    def memory_total_bytes(self) -> int:
        return self.facts.vram_total_mb * MEGABYTE


@dataclass(frozen=True, slots=True)
class Inventory:
    """The devices of this neuron in the order of their indexes, and the driver behind them."""

    devices: tuple[DeviceSpec, ...]
    driver: str | None = None
    cuda: str | None = None
    cuda_unavailable_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Sensors:
    """What a GPU says of itself now; None where its driver does not tell."""

    utilization_pct: int | None = None
    temp_c: int | None = None
    power_w: float | None = None


def take_inventory(config: DevicesConfig, environment: Mapping[str, str]) -> Inventory:
    """Return the devices to use: every visible GPU, CPU devices as declared or for want of one."""
    if config.cuda:
        found = _cuda_devices(environment.get("CUDA_VISIBLE_DEVICES"))
    else:
        found = Inventory((), cuda_unavailable_reason="switched off by [devices] cuda = false")
    num_cpu = config.cpu or (0 if found.devices else 1)
    cpus = _cpu_devices(config, num_cpu, first_index=len(found.devices))
    return Inventory(found.devices + cpus, found.driver, found.cuda, found.cuda_unavailable_reason)


def read_sensors(devices: tuple[DeviceSpec, ...]) -> dict[int, Sensors]:
    """Return each GPU's sensors by device index. A sick driver may block it: use a thread."""
    gpus = [spec for spec in devices if spec.uuid is not None]
    if not gpus:
        return {}
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # the driver may vanish while we run; sensors are a courtesy
        return {}
    try:
        return {spec.facts.index: _sensors(pynvml, str(spec.uuid)) for spec in gpus}
    finally:
        pynvml.nvmlShutdown()


# --- GPUs --------------------------------------------------------------------------------------


def _cuda_devices(visible: str | None) -> Inventory:
    try:
        import pynvml
    except ImportError:
        return Inventory((), cuda_unavailable_reason="nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Inventory((), cuda_unavailable_reason=f"NVML: {error}")
    try:
        return _read_nvml(pynvml, visible)
    except pynvml.NVMLError as error:
        return Inventory((), cuda_unavailable_reason=f"NVML: {error}")
    finally:
        pynvml.nvmlShutdown()


def _read_nvml(nvml: ModuleType, visible: str | None) -> Inventory:
    uuids = [
        _text(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(index)))
        for index in range(nvml.nvmlDeviceGetCount())
    ]
    chosen = choose_visible(uuids, visible)
    devices = tuple(_gpu(nvml, uuid, ordinal) for ordinal, uuid in enumerate(chosen))
    version = nvml.nvmlSystemGetCudaDriverVersion()
    return Inventory(
        devices,
        driver=_text(nvml.nvmlSystemGetDriverVersion()),
        cuda=f"{version // 1000}.{version % 1000 // 10}",
        cuda_unavailable_reason=None if devices else "no GPU is visible",
    )


def choose_visible(uuids: list[str], visible: str | None) -> list[str]:
    """Return the devices CUDA_VISIBLE_DEVICES leaves, in its order, up to the first bad entry."""
    if visible is None:
        return uuids
    chosen: list[str] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.isdecimal() and int(entry) < len(uuids):
            chosen.append(uuids[int(entry)])
        else:
            named = [uuid for uuid in uuids if entry and uuid.startswith(entry)]
            if len(named) != 1:
                break
            chosen.append(named[0])
    return chosen


def _gpu(nvml: ModuleType, uuid: str, ordinal: int) -> DeviceSpec:
    handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    facts = DeviceFacts(
        index=ordinal,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        kind="cuda",
        vram_total_mb=nvml.nvmlDeviceGetMemoryInfo(handle).total // MEGABYTE,
        compute_capability=f"{major}.{minor}",
    )
    return DeviceSpec(facts, ordinal, uuid=uuid)


def _sensors(nvml: ModuleType, uuid: str) -> Sensors:
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        return Sensors(
            utilization_pct=nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            temp_c=nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            power_w=nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        )
    except nvml.NVMLError:
        return Sensors()  # this GPU does not tell, or has fallen off the bus


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


# --- CPU devices -------------------------------------------------------------------------------


def _cpu_devices(
    config: DevicesConfig, num_devices: int, first_index: int
) -> tuple[DeviceSpec, ...]:
    if num_devices == 0:
        return ()
    memory_mb = config.cpu_memory_mb or max(1, _host_memory_mb() // 2 // num_devices)
    threads = config.threads or max(1, len(os.sched_getaffinity(0)) // num_devices)
    name = _cpu_name()
    return tuple(
        DeviceSpec(DeviceFacts(first_index + number, name, "cpu", memory_mb), number, threads)
        for number in range(num_devices)
    )


def _host_memory_mb() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MEGABYTE


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "CPU")
