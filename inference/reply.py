"""The four ways of a neuron's answer to its client: as it came or encoded, as it comes or at once.

Each takes one neuron's answer, times it and notes how it ended. It decides nothing: what follows
when a neuron breaks off is the relay's to say.
"""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from inference.client import JSON_HEADER, Client
from inference.dispatch.failover import TransportFailure
from inference.event_stream import EventStream, Where
from inference.neuron_connection import AnswerTooLong, NeuronFailed
from inference.neuron_stream import NeuronAnswer
from inference.request_facts import RequestFacts
from inference.wire import neuron_answer, sse
from inference.wire.chat_stream import ChatStreamDecoder
from inference.wire.dialect import (
    AnswerHead,
    Collector,
    InferenceRequest,
    Operation,
    StreamEncoder,
)
from inference.wire.errors import AnswerTooLarge
from inference.wire.events import ChatEvent, PromptRead
from neuron_agent.protocol import ControlFrame, Progress

MAX_ANSWER_BYTES = 64 << 20
Fed = TypeVar("Fed")


class Reply(Protocol):
    """How a request's answer goes to its client."""

    is_stream: bool
    """The neuron is asked for a stream."""

    def show(self, where: Where) -> None:
        """Tell the client, from time to time, what this says of where its request is."""

    async def carry(self, answer: NeuronAnswer) -> None:
        """Give a neuron's answer to the client. Raises NeuronFailed, CortexError."""


@contextlib.contextmanager
def reply_to(
    client: Client, operation: Operation, request: InferenceRequest, facts: RequestFacts
) -> Iterator[Reply]:
    """Yield the way of a request's answer; a client of a stream hears of it while inside."""
    shape = request.shape
    if not request.stream:
        if shape is None:
            yield ForwardedWhole(client, facts)
        else:
            yield EncodedWhole(client, shape.whole(_head(facts)), facts)
        return
    encoder = None if shape is None else shape.stream(_head(facts))
    stream = EventStream(client, operation.dialect, facts, encoder)
    with stream.kept_alive():
        if encoder is None:
            yield ForwardedStream(stream, facts)
        else:
            yield EncodedStream(stream, encoder, facts)


def _head(facts: RequestFacts) -> AnswerHead:
    return AnswerHead(secrets.token_hex(16), int(facts.arrived_at.timestamp()))


class _Whole:
    """Nothing can be said before the answer."""

    def show(self, where: Where) -> None:
        pass


class _Streamed:
    is_stream = True

    def __init__(self, stream: EventStream, facts: RequestFacts) -> None:
        self._stream = stream
        self._facts = facts

    def show(self, where: Where) -> None:
        self._stream.where = where


class ForwardedWhole(_Whole):
    is_stream = False

    def __init__(self, client: Client, facts: RequestFacts) -> None:
        self._client = client
        self._facts = facts

    async def carry(self, answer: NeuronAnswer) -> None:
        try:
            body = await answer.read(MAX_ANSWER_BYTES)
        except AnswerTooLong:  # many choices, many embeddings: the neuron did as it was told
            raise AnswerTooLarge(MAX_ANSWER_BYTES) from None
        outcome = neuron_answer.read_outcome(body)
        if outcome is None:
            raise NeuronFailed(TransportFailure.BROKEN, "the answer cannot be read")
        if outcome.error is not None:
            raise outcome.error
        facts = self._facts
        _note_first_token(facts)
        facts.usage, facts.finish_reason = outcome.usage, outcome.finish_reason
        facts.status = 200
        await self._client.answer(200, body, (JSON_HEADER, *facts.headers))


class ForwardedStream(_Streamed):
    async def carry(self, answer: NeuronAnswer) -> None:
        stream, facts = self._stream, self._facts
        frames, whole = sse.ControlFrameFilter(), sse.WholeFrames()
        last_control = b""
        while chunk := await answer.next_piece():
            piece = _read(frames.feed, chunk)
            if piece.controls:
                last_control = piece.controls[-1]
            data = _read(whole.feed, piece.data)
            if not data:
                if facts.first_token is None:
                    _note_progress(stream, neuron_answer.read_control(last_control).progress)
                continue
            if sse.ERROR_FRAME in data:
                await self._break_off(data)
            if facts.first_token is None and not sse.is_only_comments(data):
                _note_first_token(facts)
            if sse.is_end(data):
                # Noted before it is written: many clients leave as soon as they have read it.
                _note_end(facts, neuron_answer.read_control(last_control))
                await stream.end(data)
                return
            await stream.write(data)
        raise _no_end()

    async def _break_off(self, data: bytes) -> None:
        """Raise the error frame in it as NeuronAnswered: a neuron's own words may name a path.

        Where nothing was said yet, what stands before it is not said either: another neuron may be
        asked.
        """
        before, begin, rest = data.partition(sse.ERROR_FRAME)
        if before and self._facts.first_token is not None:
            await self._stream.write(before)
        raise neuron_answer.read_streamed_error(sse.first_data(begin + rest))


class EncodedStream(_Streamed):
    def __init__(self, stream: EventStream, encoder: StreamEncoder, facts: RequestFacts) -> None:
        super().__init__(stream, facts)
        self._encoder = encoder

    async def carry(self, answer: NeuronAnswer) -> None:
        decoder = ChatStreamDecoder()
        prompt: PromptRead | None = None
        while chunk := await answer.next_piece():
            told: list[ChatEvent] = []
            for event in _read(decoder.feed, chunk):
                match event:
                    case Progress():
                        _note_progress(self._stream, event)
                    case PromptRead():
                        prompt = event  # another neuron may yet be asked: said with the first token
                    case _:
                        told += [event] if prompt is None else [prompt, event]
                        prompt = None
            if told:
                await self._tell(told, decoder)
            if decoder.is_complete:
                return
        raise _no_end()

    async def _tell(self, events: list[ChatEvent], decoder: ChatStreamDecoder) -> None:
        await self._stream.begin()
        _note_first_token(self._facts)
        frames = b"".join(map(self._encoder.feed, events))
        if decoder.is_complete:
            # Noted before it is written: many clients leave as soon as they have read it.
            _note_end(self._facts, decoder.last_control)
            await self._stream.end(frames)
        else:
            await self._stream.write(frames)


class EncodedWhole(_Whole):
    is_stream = True

    def __init__(self, client: Client, collector: Collector, facts: RequestFacts) -> None:
        self._client = client
        self._collector = collector
        self._facts = facts

    async def carry(self, answer: NeuronAnswer) -> None:
        decoder = ChatStreamDecoder()
        events: list[ChatEvent] = []  # kept to the end: another neuron may yet be asked
        num_bytes = 0
        while not decoder.is_complete:
            chunk = await answer.next_piece()
            num_bytes += len(chunk)
            if not chunk or num_bytes > MAX_ANSWER_BYTES:
                raise _no_end()
            told = _read(decoder.feed, chunk)
            events += [event for event in told if not isinstance(event, Progress)]
        for event in events:
            self._collector.feed(event)
        facts = self._facts
        _note_first_token(facts)
        _note_end(facts, decoder.last_control)
        await self._client.answer(200, self._collector.body(), (JSON_HEADER, *facts.headers))


def _read(feed: Callable[[bytes], Fed], chunk: bytes) -> Fed:
    try:
        return feed(chunk)
    except sse.BadStream as error:
        raise NeuronFailed(TransportFailure.BROKEN, str(error)) from None


def _no_end() -> NeuronFailed:
    return NeuronFailed(TransportFailure.BROKEN, "the stream has no end")


def _note_progress(stream: EventStream, progress: Progress | None) -> None:
    if progress is None:
        return
    told: dict[str, object] = {"stage": progress.stage}
    if progress.total:
        percent = round(100 * progress.done / progress.total, 1)
        told |= {"percent": percent, "done": progress.done, "total": progress.total}
    stream.where = lambda: told


def _note_first_token(facts: RequestFacts) -> None:
    if facts.first_token is None:
        facts.first_token = time.monotonic()


def _note_end(facts: RequestFacts, control: ControlFrame) -> None:
    facts.usage, facts.timing = control.usage, control.timing
    facts.finish_reason = control.finish_reason or ""
    facts.status = 200
