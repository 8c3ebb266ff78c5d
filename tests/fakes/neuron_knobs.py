"""What a test may turn on a fake neuron, and the refusals it can make the neuron give."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from tests.fakes.scripted_reply import ScriptedReply


class Refusal(Exception):
    """An error answer in a neuron's words: status, `error.code` and what goes with it."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str = "as the test asked",
        *,
        retry_after: int | None = None,
        needed_mb: int | None = None,
        free_mb: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.needed_mb = needed_mb
        self.free_mb = free_mb


@dataclass(slots=True)
class Knobs:
    """Turn any of them while the neuron runs. `math.inf` as a delay: until it is turned back."""

    # The host
    device_memory_mb: tuple[int, ...] = (24_000,)
    device_kind: str = "cuda"
    poisoned_devices: frozenset[int] = frozenset()
    token: str | None = None
    """With a token every caller must present it."""

    # Loads
    model_memory_mb: dict[str, int] = field(default_factory=dict)
    default_model_memory_mb: int = 1_000
    model_needed_mb: dict[str, int] = field(default_factory=dict)
    """What a model asks for wherever it is loaded, where that is told: `needed_mb`."""
    context_tokens: int = 32_768
    load_seconds: float = 0.0
    unload_seconds: float = 0.0
    refuse_load: Refusal | None = None
    """Answer every load with this, at once."""
    fail_load: tuple[str, str] | None = None
    """Code and message: loads are accepted and end as failed, after `load_seconds`."""

    refuse_tokenize: Refusal | None = None
    """Answer every count with this; without, this neuron has the tokenizer of any model."""

    # Chat
    max_in_flight: int = 256
    first_token_delay_seconds: float = 0.0
    """Passes after the head of the answer was sent."""
    token_delay_seconds: float = 0.0
    num_tokens: int = 8
    cached_tokens: int = 0
    reply_tokens: tuple[str, ...] | None = None
    """The text of each token, instead of `num_tokens` numbered words."""
    script: list[ScriptedReply] = field(default_factory=list)
    """What the next requests that offer tools are answered, one after the other; then words."""
    scripted_frames: tuple[bytes, ...] | None = None
    """The exact bytes of a streamed answer's body, piece by piece."""
    frame_interval_seconds: float = 1.0
    """How often progress frames or keep-alive comments come while no token does."""

    # Faults
    fail_before_first_byte: Refusal | None = None
    """Answer every chat request with this."""
    drop_connection_before_head: bool = False
    drop_connection_after_tokens: int | None = None
    """Cut a stream after so many tokens."""
    hang: bool = False
    """Take requests, on any path, and say nothing."""

    def memory_of(self, model_id: str) -> int:
        return self.model_memory_mb.get(model_id, self.default_model_memory_mb)


async def until(condition: Callable[[], bool], seconds: Callable[[], float] = lambda: inf) -> bool:
    """Wait for a condition, or until the time is over; return whether the condition holds.

    Both are looked at again and again, since knobs are turned from the test's thread.
    """
    began_at = time.monotonic()
    while not condition():
        remaining = began_at + seconds() - time.monotonic()
        if remaining <= 0:
            return False
        await asyncio.sleep(min(remaining, 0.005))
    return True


async def pause(seconds: Callable[[], float]) -> None:
    """Wait for as long as a knob says, now and while waiting."""
    await until(lambda: False, seconds)
