"""The device as its thread uses it: bind it, load and unload on it, ask for its memory.

Everything here runs on the device thread alone. It knows neither the mailbox nor the channel's
socket, and it does not decide what an error means.
"""

import ctypes
import gc
import os
from collections.abc import Callable

import torch
import transformers
from transformers.utils import logging

from neuron_agent.devices.channel import LoadModel, Started
from neuron_agent.engine.engine import Engine
from neuron_agent.engine.loading.loader import LoadContext, load_engine
from neuron_agent.engine.loading.progress import Progress, anonymous_bytes
from neuron_agent.engine.memory import MemoryBooks

CUDA_HEADROOM_BYTES = 512 * 1024 * 1024
"""Kept free on a GPU: library workspaces and fragments that no sum foresees."""


class TorchDevice:
    """`memory_bytes` limits a CPU device, and a GPU too if it is given."""

    def __init__(
        self,
        device: torch.device,
        *,
        memory_bytes: int | None,
        num_threads: int | None,
        clock: Callable[[], float],
    ) -> None:
        self._device = device
        self._memory_bytes = memory_bytes
        self._num_threads = num_threads
        self._clock = clock
        self._books = MemoryBooks(self._usable_bytes)

    @property
    def _is_cuda(self) -> bool:
        return self._device.type == "cuda"

    def bind(self) -> Started:
        """Make this thread the device's owner. To be called once, first, on the device thread."""
        if self._num_threads is not None:
            torch.set_num_threads(self._num_threads)
        torch.set_grad_enabled(False)  # grad mode belongs to a thread
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        if self._is_cuda:
            torch.cuda.set_device(self._device)
            torch.cuda.synchronize()  # a broken device shows now, not in the first load
        return Started(
            memory_total_bytes=self._total_bytes(),
            torch_version=str(torch.__version__),
            transformers_version=transformers.__version__,
            cuda_version=torch.version.cuda,
        )

    def load(self, command: LoadModel, progress: Progress) -> Engine:
        """Load a model and enter its claim. Raises LoadRefused, or what torch raises."""
        context = LoadContext(
            self._device, lambda: self._books.free_bytes, self._clock, progress, self._used_bytes
        )
        engine = load_engine(command, context)
        self._books.claim(command.model_id, engine.limits.memory_bytes)
        return engine

    def reclaim(self, model_id: str) -> None:
        """After a model's engine was closed: its memory is free and can be claimed again."""
        self._books.give_back(model_id)
        self.empty_caches()

    def memory(self) -> tuple[int, int]:
        """Return used and free bytes. Free is what a further model may claim."""
        if not self._is_cuda:
            return self._books.claimed_bytes, self._books.free_bytes
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free, self._books.free_bytes

    def empty_caches(self) -> None:
        """Hand memory that nobody uses back to the device."""
        gc.collect()
        if self._is_cuda:
            torch.cuda.empty_cache()
        else:
            _trim_heap()

    def _used_bytes(self) -> int:
        """What this process has in use on the device, memory that is only kept ready left out."""
        if self._is_cuda:
            torch.cuda.empty_cache()
            return torch.cuda.memory_reserved(self._device)
        _trim_heap()
        return anonymous_bytes()

    def _total_bytes(self) -> int:
        if self._memory_bytes is not None:
            return self._memory_bytes
        if self._is_cuda:
            return torch.cuda.mem_get_info(self._device)[1]
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def _usable_bytes(self) -> int:
        """What this process may have in all: on a GPU, what the driver has left for it."""
        if not self._is_cuda:
            return self._total_bytes()
        free, _ = torch.cuda.mem_get_info(self._device)
        mine = torch.cuda.memory_reserved(self._device)
        return min(self._total_bytes(), free + mine - CUDA_HEADROOM_BYTES)


def _trim_heap() -> None:
    """Give freed heap back to the system, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
