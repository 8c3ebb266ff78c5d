"""Clients that stop reading."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message

from neuron_agent import http_answer
from neuron_agent.http_answer import FramesAnswer


class Frames:
    """An endless stream that notes its end."""

    has_ended = False

    async def __call__(self) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                await asyncio.sleep(0.001)
                yield b"frame"
        finally:
            self.has_ended = True


async def never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError("nothing comes")


async def test_client_that_stops_reading_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_answer, "STALLED_SECONDS", 0.05)
    frames, num_taken = Frames(), 0

    async def take_three(_message: Message) -> None:
        nonlocal num_taken
        num_taken += 1
        if num_taken > 3:
            await asyncio.Event().wait()

    async with asyncio.timeout(30):
        await FramesAnswer(frames())({"type": "http"}, never, take_three)
    assert frames.has_ended
    assert num_taken == 4


async def test_client_that_has_nothing_to_read_is_not_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_answer, "STALLED_SECONDS", 0.05)

    async def one_frame_and_silence() -> AsyncGenerator[bytes, None]:
        yield b"frame"
        await asyncio.Event().wait()

    async def take(_message: Message) -> None:
        pass

    answer = FramesAnswer(one_frame_and_silence())({"type": "http"}, never, take)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(answer, 0.2)
