"""The stub says what a neuron says, byte for byte, and waits for who reads slowly."""

import asyncio
import re
import time

from clients import CHAT, Pace, request_bytes
from stub_neuron import LAST_CHUNK, StubProtocol

from inference.wire.chat_stream import ChatStreamDecoder
from inference.wire.events import Finished, PromptRead, TextDelta
from neuron_agent.protocol import FRAMES_HEADER, Timing, Usage
from neuron_agent.wire import events as neuron_events
from neuron_agent.wire.chat_response import ChatStreamEncoder
from neuron_agent.wire.stream_encoder import Framing, ResponseHead

CONTROL_FRAMES = f"{FRAMES_HEADER}: 1\r\n".encode()


async def answer_of(request: bytes) -> bytes:
    """Return the body of the stub's answer."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(StubProtocol, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(request)
        await reader.readuntil(b"\r\n\r\n")
        body = b""
        while length := int(await reader.readline(), 16):
            body += await reader.readexactly(length)
            await reader.readline()
        writer.close()
    return body


def with_control_frames(pace: Pace) -> bytes:
    return request_bytes(CHAT, pace).replace(b"host:", CONTROL_FRAMES + b"host:", 1)


def neurons_own(texts: list[str], *, has_control_frames: bool) -> bytes:
    """Return what a neuron's encoder makes of the same answer."""
    encoder = ChatStreamEncoder(
        ResponseHead("chatcmpl-1", 1, "stub"), Framing(has_control_frames=has_control_frames)
    )
    events = [
        neuron_events.PromptRead(Usage(7, 0)),
        *[neuron_events.TextDelta(text) for text in texts],
        neuron_events.ChoiceFinished("stop"),
        neuron_events.Finished("stop", Usage(7, len(texts)), Timing(0.0, 1.0, 1.0)),
    ]
    return b"".join(encoder.feed(event) for event in events)


def texts_of(body: bytes) -> list[str]:
    return [text.decode() for text in re.findall(rb'"content":"([^"]*)"', body)]


async def test_its_stream_is_a_neurons() -> None:
    body = await answer_of(with_control_frames(Pace(3, pad_bytes=4)))
    texts = texts_of(body)
    assert len(texts) == 3
    assert body == neurons_own(texts, has_control_frames=True)


async def test_who_asks_for_no_control_frames_gets_none() -> None:
    body = await answer_of(request_bytes(CHAT, Pace(2)))
    assert body == neurons_own(texts_of(body), has_control_frames=False)


async def test_a_token_says_when_it_was_sent() -> None:
    began_ns = time.monotonic_ns()
    body = await answer_of(with_control_frames(Pace(2)))
    prompt_read, *tokens, finished = ChatStreamDecoder().feed(body)
    assert isinstance(prompt_read, PromptRead)
    assert isinstance(finished, Finished)
    sent_ns = [int(token.text[1:]) for token in tokens if isinstance(token, TextDelta)]
    assert len(sent_ns) == 2
    assert began_ns < sent_ns[0] <= sent_ns[1] < time.monotonic_ns()


class Transport(asyncio.Transport):
    """Takes what is written, and is full after so many writes."""

    def __init__(self, protocol: StubProtocol, full_after: int) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.ended = asyncio.Event()
        self._protocol = protocol
        self._full_after = full_after

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))
        if data == LAST_CHUNK:
            self.ended.set()
        if len(self.written) == self._full_after:
            self._protocol.pause_writing()


async def test_a_reader_that_lags_is_waited_for() -> None:
    protocol = StubProtocol()
    transport = Transport(protocol, full_after=3)  # the head and two tokens
    protocol.connection_made(transport)
    protocol.data_received(request_bytes(CHAT, Pace(4)))
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(transport.written) == 3
    protocol.resume_writing()
    async with asyncio.timeout(5):
        await transport.ended.wait()
    assert b"".join(transport.written).count(b'"content"') == 4
