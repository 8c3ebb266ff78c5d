"""What a device process is given to start with."""

from pathlib import Path

from neuron_agent.devices.inventory import DeviceSpec
from neuron_agent.devices.link import DeviceLink
from neuron_agent.protocol import DeviceFacts

THIRD_GPU = DeviceSpec(DeviceFacts(2, "a GPU", "cuda", 1000), 2, uuid="GPU-c")
SECOND_CPU = DeviceSpec(DeviceFacts(3, "a CPU", "cpu", 400), 1, threads=2)
TELL = ["sh", "-c", 'echo "$CUDA_VISIBLE_DEVICES|$*" > "$TOLD"', "sh"]


async def told(spec: DeviceSpec, tmp_path: Path) -> tuple[str, str]:
    """Return the GPUs a process would see, and its arguments after the socket's number."""
    environment = {"CUDA_VISIBLE_DEVICES": "0,1,2", "TOLD": str(tmp_path / "told"), "PATH": "/bin"}
    link = await DeviceLink.start(TELL, spec, environment)
    assert await link.receive() is None
    await link.stop(grace_seconds=30)
    visible, _, arguments = (tmp_path / "told").read_text().strip().partition("|")
    return visible, arguments.partition("--device")[2].strip()


async def test_gpu_s_process_sees_no_other_gpu(tmp_path: Path) -> None:
    assert await told(THIRD_GPU, tmp_path) == ("GPU-c", "cuda:0 --index 2")


async def test_cpu_s_process_sees_no_gpu(tmp_path: Path) -> None:
    assert await told(SECOND_CPU, tmp_path) == ("", "cpu:1 --memory-mb 400 --threads 2")
