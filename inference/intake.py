"""Takes requests in: reads, unpacks and parses their bodies within the memory set aside.

Each body is counted from its first byte to the end of its request. It knows no fleet, and what a
request asks for only as `wire` reads it.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from inference.client import Client
from inference.dispatch.admission import Limits, Reject, admit_body
from inference.wire import json_body
from inference.wire.errors import Saturated

PARSE_IN_THREAD_BYTES = 64 << 10
MAX_PARSING = 2
"""Threads at once: they all want the same interpreter, and the event loop wants it too."""


class _HasBody(Protocol):
    @property
    def body(self) -> bytes:
        """What a neuron is asked: what came, or a translation of it."""


Parsed = TypeVar("Parsed", bound=_HasBody)


class Place:
    """What one request holds in memory."""

    def __init__(self, intake: "Intake") -> None:
        self.held_bytes = 0
        self._intake = intake

    def hold(self, more_bytes: int) -> None:
        """Raises Saturated, and nothing more is held then."""
        self._intake.admit(more_bytes)
        self.held_bytes += more_bytes


class Intake:
    """One per gateway. Belongs to the event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held_bytes = 0
        self._parsing = asyncio.Semaphore(MAX_PARSING)

    @contextlib.contextmanager
    def place(self) -> Iterator[Place]:
        """For as long as a request lasts; what it holds at the end is given back."""
        place = Place(self)
        try:
            yield place
        finally:
            self._held_bytes -= place.held_bytes

    def admit(self, more_bytes: int) -> None:
        """Raises Saturated."""
        decision = admit_body(self._held_bytes, more_bytes, self._limits)
        if isinstance(decision, Reject):
            raise Saturated(decision.reason, retry_after_seconds=decision.retry_after_seconds)
        self._held_bytes += more_bytes

    async def read(self, client: Client, place: Place, parse: Callable[[bytes], Parsed]) -> Parsed:
        """Raises InvalidRequest, RequestTooLarge, Saturated, ClientLeft."""
        packed = await client.read_body(json_body.MAX_BODY_BYTES, place.hold)
        encoding = client.header(b"content-encoding").strip().lower()
        if len(packed) < PARSE_IN_THREAD_BYTES and not encoding:
            body, parsed = packed, parse(packed)
        else:
            async with self._parsing:
                body = await asyncio.to_thread(json_body.unpack, packed, encoding)
                place.hold(len(body) - len(packed))
                parsed = await asyncio.to_thread(parse, body)
        if parsed.body is not body:
            # Beside what came: an answer's shape may keep parts of that, to repeat them.
            place.hold(len(parsed.body))
        return parsed

    def check_integrity(self) -> None:
        """Raise AssertionError if memory was not given back. For when nothing runs."""
        assert self._held_bytes == 0, f"{self._held_bytes} bytes are still held"
