"""A request's event stream to its client: the head when it is due, frames, signs of life.

Whatever a request waits for, a load, a neuron's queue, its prompt being read, its client hears of
it: who knows where the request is says so in `where`. It knows a dialect's signs of life and when
they are due, and nothing of what is streamed.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from inference.client import Client
from inference.request_facts import RequestFacts
from inference.wire.dialect import Dialect, Progress, StreamEncoder

FIRST_WORD_SECONDS = 0.8
"""Until then an answer with its proper status may still come; the client's limit is 1 s."""
PERIOD_SECONDS = 2.0
SIGNS_PER_EVENT = 30
"""Of so many signs of life in a row one is an event, where a dialect's comments are overlooked."""

Where = Callable[[], Progress]
"""Says, whenever it is asked, where a request is."""


def queued() -> Progress:
    """Where a request is while nothing is known of it."""
    return {"stage": "queued"}


class EventStream:
    """What is written is whole frames, so signs of life may go between any two writings."""

    def __init__(
        self,
        client: Client,
        dialect: Dialect,
        facts: RequestFacts,
        encoder: StreamEncoder | None = None,
    ) -> None:
        self.where: Where = queued
        self._client = client
        self._dialect = dialect
        self._facts = facts
        self._encoder = encoder
        self._timer: asyncio.TimerHandle | None = None
        self._sign: asyncio.Task[None] | None = None
        """A sign of life that is being written."""
        self._num_signs = 0

    @contextlib.contextmanager
    def kept_alive(self) -> Iterator[None]:
        """Give signs of life while inside. One timer a request, not one a frame."""
        self._look()
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._sign is not None:
                self._sign.cancel()

    async def begin(self) -> None:
        """Send the head and the encoder's opening, unless they were sent. Before any `feed`."""
        while self._sign is not None:
            await asyncio.wait({self._sign})
        if not self._client.has_begun:
            await self._begin()

    async def write(self, frames: bytes) -> None:
        await self.begin()
        await self._client.write(frames)

    async def end(self, frames: bytes) -> None:
        await self.begin()
        await self._client.end(frames)

    async def _begin(self) -> None:
        await self._client.begin_stream(self._facts.headers)
        if self._encoder is None:
            return
        self._client.error_frame = self._encoder.fail
        if opening := self._encoder.open():
            await self._client.write(opening)

    def _look(self) -> None:
        client = self._client
        if client.has_ended:
            return
        due_seconds = PERIOD_SECONDS if client.has_begun else FIRST_WORD_SECONDS
        left = due_seconds - client.quiet_seconds
        loop = asyncio.get_running_loop()
        if left <= 0:
            if not client.is_behind:
                self._sign = loop.create_task(self._give_sign())
            left = PERIOD_SECONDS
        self._timer = loop.call_later(left, self._look)

    async def _give_sign(self) -> None:
        try:
            if not self._client.has_begun:
                await self._begin()
            self._num_signs += 1
            is_event_due = self._num_signs % SIGNS_PER_EVENT == 0
            event = self._encoder.idle() if self._encoder and is_event_due else b""
            await self._client.write(self._dialect.keep_alive(self.where()) + event)
        finally:
            self._sign = None
