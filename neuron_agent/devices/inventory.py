"""What devices this host has and how they feel: NVML's facts for GPUs, the budget for CPU devices.

It runs in the front process and never touches a device: NVML reads the driver, no CUDA context is
made. It knows neither models nor processes.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import structlog

from neuron_agent.config import DevicesConfig
from neuron_agent.protocol import DeviceFacts

MEGABYTE = 2**20

T = TypeVar("T")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A device this neuron will use: what it is, and what its process is told."""

    facts: DeviceFacts
    ordinal: int
    """Its number among the devices of its kind: N of `cuda:N` and `cpu:N`."""
    threads: int = 1
    uuid: str | None = None
    driver: str | None = None
    """The version of the driver behind it; a CPU has none."""

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
    """Return the GPUs that answer. A sick one hides itself and none of its neighbours."""
    uuids = [_uuid(nvml, number) for number in range(nvml.nvmlDeviceGetCount())]
    healthy: list[DeviceSpec] = []
    driver = _ask(nvml, nvml.nvmlSystemGetDriverVersion)
    for uuid in choose_visible(uuids, visible):
        gpu = _ask(nvml, _gpu, nvml, uuid, len(healthy)) if uuid else None
        if gpu is not None:
            healthy.append(replace(gpu, driver=_text(driver) if driver else None))
        else:
            log.error("a GPU does not answer and is left out", uuid=uuid)
    version = _ask(nvml, nvml.nvmlSystemGetCudaDriverVersion)
    return Inventory(
        tuple(healthy),
        driver=_text(driver) if driver else None,
        cuda=f"{version // 1000}.{version % 1000 // 10}" if version else None,
        cuda_unavailable_reason=None if healthy else "no GPU is visible that answers",
    )


def _uuid(nvml: ModuleType, number: int) -> str:
    """Return a GPU's UUID, empty if it does not say; its number stays taken all the same."""
    handle = _ask(nvml, nvml.nvmlDeviceGetHandleByIndex, number)
    uuid = _ask(nvml, nvml.nvmlDeviceGetUUID, handle) if handle is not None else None
    return _text(uuid) if uuid else ""


def _ask(nvml: ModuleType, question: Callable[..., T], *arguments: object) -> T | None:
    """Return NVML's answer, None if this driver or this GPU has none."""
    try:
        return question(*arguments)
    except nvml.NVMLError:
        return None


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
    handle = _ask(nvml, nvml.nvmlDeviceGetHandleByUUID, uuid)
    if handle is None:
        return Sensors()  # it has fallen off the bus
    rates = _ask(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
    power_mw = _ask(nvml, nvml.nvmlDeviceGetPowerUsage, handle)
    return Sensors(
        utilization_pct=None if rates is None else rates.gpu,
        temp_c=_ask(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        power_w=None if power_mw is None else power_mw / 1000,
    )


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
