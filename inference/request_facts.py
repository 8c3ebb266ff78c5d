"""What is learned about one request on its way, and the record made of it at its end.

It measures nothing by itself: who sees something happen writes it here.
"""

from dataclasses import dataclass, field
from datetime import datetime

from fleet.selectors import ServedNeuron, ServedPlacement
from inference.models import RequestRecord
from inference.wire.errors import CortexError
from neuron_agent.protocol import Timing, Usage

CLIENT_LEFT = 499


@dataclass(slots=True)
class RequestFacts:
    """Times without a date are seconds of the monotonic clock."""

    request_id: str
    dialect: str
    arrived_at: datetime
    began: float
    ended: float = 0.0
    client_address: str = ""
    user_agent: str = ""
    requested_model: str = ""
    model: str = ""
    streaming: bool = False
    neuron: str = ""
    placement_id: int | None = None
    cold_start: bool = False
    load_wait_seconds: float | None = None
    wait_deadline: float | None = None
    """Until when it may wait for loads, once it had to."""
    first_token: float | None = None
    status: int = 0
    error_code: str = ""
    finish_reason: str = ""
    usage: Usage | None = None
    timing: Timing | None = field(default=None)

    def note_attempt(self, placement: ServedPlacement, neuron: ServedNeuron) -> None:
        self.placement_id = placement.id
        self.neuron = neuron.name

    def note_error(self, error: CortexError) -> None:
        self.status = error.status
        self.error_code = error.code

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """What a client is told of who served it."""
        headers = [(b"x-cortex-cold-start", b"true" if self.cold_start else b"false")]
        if self.placement_id is not None:
            headers.append((b"x-cortex-neuron", self.neuron.encode()))
            headers.append((b"x-cortex-placement", str(self.placement_id).encode()))
        return headers

    def record(self) -> RequestRecord:
        usage, timing = self.usage, self.timing
        ttft_seconds = None if self.first_token is None else self.first_token - self.began
        return RequestRecord(
            request_id=self.request_id,
            at=self.arrived_at,
            model=self.model,
            requested_model=self.requested_model,
            neuron=self.neuron,
            placement=self.placement_id,
            dialect=self.dialect,
            streaming=self.streaming,
            status=self.status,
            finish_reason=self.finish_reason,
            error_code=self.error_code,
            prompt_tokens=usage.prompt_tokens if usage else None,
            completion_tokens=usage.completion_tokens if usage else None,
            cached_tokens=usage.cached_tokens if usage else None,
            ttft_seconds=ttft_seconds,
            latency_seconds=self.ended - self.began,
            tokens_per_second=self._tokens_per_second(),
            load_wait_seconds=self.load_wait_seconds,
            cold_start=self.cold_start,
            queue_ms=timing.queue_ms if timing else None,
            prefill_ms=timing.prefill_ms if timing else None,
            decode_ms=timing.decode_ms if timing else None,
            client_address=self.client_address,
            user_agent=self.user_agent,
        )

    def _tokens_per_second(self) -> float | None:
        """A stream's first token starts its clock, so it is not counted."""
        if self.usage is None:
            return None
        num_tokens = self.usage.completion_tokens
        if self.streaming and self.first_token is not None:
            num_tokens, seconds = num_tokens - 1, self.ended - self.first_token
        else:
            seconds = self.ended - self.began - (self.load_wait_seconds or 0.0)
        return num_tokens / seconds if num_tokens > 0 and seconds > 0 else None
