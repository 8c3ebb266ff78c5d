"""One sequence being generated: what was asked, how far it is, and which moves are legal.

It knows token ids and counts. It knows no tensor, no clock (times are passed in) and nothing of
how a token is chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class RequestStatus(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


# Running may go back to waiting: a preempted request gives up its place and is computed again.
TRANSITIONS: dict[RequestStatus, frozenset[RequestStatus]] = {
    RequestStatus.WAITING: frozenset({RequestStatus.RUNNING, RequestStatus.FINISHED}),
    RequestStatus.RUNNING: frozenset({RequestStatus.WAITING, RequestStatus.FINISHED}),
    RequestStatus.FINISHED: frozenset(),
}


class IllegalMove(Exception):
    """A request was asked to go where its state does not lead: a bug of ours."""


@dataclass(slots=True, eq=False)
class Request:
    """A sequence: its prompt, then the tokens generated so far.

    `num_computed` counts the leading tokens whose keys and values are in the cache. Whatever lies
    behind them is pending: many tokens in prefill, one in decode.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    stop_ids: frozenset[int]
    submitted_at: float
    principal: str = ""
    """On whose behalf; callers without a name share one."""
    is_embedding: bool = False
    """Asks for the embedding of its prompt, and for no token."""
    status: RequestStatus = RequestStatus.WAITING
    finish: FinishReason | None = None
    slot: int | None = None
    block_ids: Sequence[int] = ()
    held_tokens: int = 0
    """How long it may become before it must ask for more room."""
    generated_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_cached: int = 0
    """Prompt tokens that were taken from the cache when it was first admitted."""
    admitted_at: float | None = None
    first_token_at: float | None = None

    @property
    def num_known(self) -> int:
        """Prompt and generated tokens together."""
        return len(self.prompt_ids) + len(self.generated_ids)

    @property
    def known_ids(self) -> tuple[int, ...]:
        return (
            self.prompt_ids + tuple(self.generated_ids) if self.generated_ids else self.prompt_ids
        )

    @property
    def num_pending(self) -> int:
        return self.num_known - self.num_computed

    @property
    def is_decoding(self) -> bool:
        return bool(self.generated_ids) and self.num_pending == 1

    @property
    def most_tokens(self) -> int:
        """The longest this sequence can become."""
        if self.is_embedding:
            return len(self.prompt_ids)
        return len(self.prompt_ids) + self.max_tokens

    def pending_ids(self, num_tokens: int) -> tuple[int, ...]:
        """Return the next `num_tokens` tokens that are not in the cache yet."""
        start, end = self.num_computed, self.num_computed + num_tokens
        boundary = len(self.prompt_ids)
        generated = self.generated_ids[max(0, start - boundary) : max(0, end - boundary)]
        return self.prompt_ids[start:end] + tuple(generated)

    def move_to(self, status: RequestStatus) -> None:
        """Change the status. Raises IllegalMove if the table forbids it."""
        if status not in TRANSITIONS[self.status]:
            raise IllegalMove(f"request {self.request_id}: {self.status} -> {status}")
        self.status = status
