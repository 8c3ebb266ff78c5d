"""Carries one request to one neuron and its answer back: frames as bytes, timed, cancelled at once.

Whatever ends this early, a client that leaves among it, cuts the connection to the neuron, and the
neuron takes the request out of its batch. It knows one placement: where to go when that one does
not answer is told by `NotServed` and done by the gateway.
"""

import time

from fleet.selectors import ServedNeuron
from inference.client import JSON_HEADER, Client
from inference.dispatch.failover import (
    NextStep,
    TransportFailure,
    after_refusal,
    after_transport_failure,
)
from inference.neuron_connection import NeuronFailed
from inference.neuron_stream import NeuronAnswer, NeuronConnections
from inference.request_facts import RequestFacts
from inference.wire import openai_chat, sse
from inference.wire.errors import CortexError, NeuronUnreachable, UpstreamError
from inference.wire.openai_chat import ChatRequest
from neuron_agent.protocol import FRAMES_HEADER, REQUEST_ID_HEADER

STREAM_IDLE_SECONDS = 60.0
"""A neuron that is well sends a frame every second, also while it has no token."""
WHOLE_IDLE_SECONDS = 600.0
KEEP_ALIVE_SECONDS = 5.0
MAX_ANSWER_BYTES = 64 << 20
MAX_REFUSAL_BYTES = 1 << 20


class NotServed(Exception):
    """A placement did not answer, and the client has seen nothing of it."""

    def __init__(
        self, next_step: NextStep, error: CortexError, failure: TransportFailure | None = None
    ) -> None:
        super().__init__(str(error))
        self.next_step = next_step
        self.error = error
        """What the client is told if nobody else can serve it."""
        self.failure = failure
        """How the neuron failed, if it did not answer at all."""


async def deliver(
    connections: NeuronConnections,
    neuron: ServedNeuron,
    request: ChatRequest,
    client: Client,
    facts: RequestFacts,
) -> None:
    """Ask the neuron and give its answer to the client.

    Raises NotServed, and UpstreamError for an answer that broke off after it had begun.
    """
    try:
        answer = await _ask(connections, neuron, request, facts)
    except NeuronFailed as error:
        raise _not_served(error, neuron) from None
    try:
        if answer.status != 200:
            raise await _refusal(answer, facts)
        carry = _carry_stream if request.stream else _carry_whole
        await carry(answer, client, facts)
    except NeuronFailed as error:
        if facts.first_token is not None:
            raise UpstreamError("The neuron broke off its answer.") from None
        raise _not_served(error, neuron) from None
    finally:
        answer.close()


async def _ask(
    connections: NeuronConnections, neuron: ServedNeuron, request: ChatRequest, facts: RequestFacts
) -> NeuronAnswer:
    headers = [
        ("content-type", "application/json"),
        (REQUEST_ID_HEADER, facts.request_id),
        (FRAMES_HEADER, "1"),
    ]
    if neuron.token is not None:
        headers.append(("authorization", f"Bearer {neuron.token}"))
    body = openai_chat.body_for(request, facts.model)
    idle_seconds = STREAM_IDLE_SECONDS if request.stream else WHOLE_IDLE_SECONDS
    return await connections.post(neuron.endpoint, openai_chat.PATH, headers, body, idle_seconds)


async def _carry_stream(answer: NeuronAnswer, client: Client, facts: RequestFacts) -> None:
    frames = sse.ControlFrameFilter()
    tail = sse.StreamTail()
    last_control = b""
    while chunk := await answer.next_piece():
        try:
            piece = frames.feed(chunk)
        except sse.BadStream as error:
            raise NeuronFailed(TransportFailure.BROKEN, str(error)) from None
        if piece.controls:
            last_control = piece.controls[-1]
        if piece.data:
            tail.feed(piece.data)
            if facts.first_token is None:
                await _begin(client, facts, piece.data)
            if sse.is_end(tail.data):
                # Noted before it is written: many clients leave as soon as they have read it.
                _note_end(facts, last_control, tail.data)
            await client.write(piece.data)
        elif piece.controls and client.quiet_seconds >= KEEP_ALIVE_SECONDS:
            # Nothing but progress came, so this is between two frames.
            await client.begin_stream(facts.headers)
            await client.write(sse.KEEP_ALIVE)
    await client.begin_stream(facts.headers)
    if rest := frames.finish():
        tail.feed(rest)
        await client.write(rest)
    _note_end(facts, last_control, tail.data)
    await client.end()


def _note_end(facts: RequestFacts, last_control: bytes, last_frames: bytes) -> None:
    control = openai_chat.read_control(last_control)
    facts.usage, facts.timing = control.usage, control.timing
    facts.finish_reason = control.finish_reason or ""
    facts.error_code = openai_chat.read_streamed_error(sse.last_data(last_frames))
    facts.status = 502 if facts.error_code else 200


async def _begin(client: Client, facts: RequestFacts, data: bytes) -> None:
    """Send the head, if only now something comes, and note the first token."""
    if not sse.is_only_comments(data):
        facts.first_token = time.monotonic()
    await client.begin_stream(facts.headers)


async def _carry_whole(answer: NeuronAnswer, client: Client, facts: RequestFacts) -> None:
    body = await answer.read(MAX_ANSWER_BYTES)
    facts.first_token = time.monotonic()
    outcome = openai_chat.read_outcome(body)
    facts.usage, facts.finish_reason = outcome.usage, outcome.finish_reason
    facts.status = 200
    await client.answer(200, body, (JSON_HEADER, *facts.headers))


async def _refusal(answer: NeuronAnswer, facts: RequestFacts) -> NotServed:
    body = await answer.read(MAX_REFUSAL_BYTES)
    retry_after = answer.headers.get("retry-after", "")
    error = openai_chat.read_refusal(
        answer.status, body, retry_after, facts.model, facts.requested_model
    )
    return NotServed(after_refusal(answer.status, error.code), error)


def _not_served(error: NeuronFailed, neuron: ServedNeuron) -> NotServed:
    """Say it in words for the client: which neuron, not where it is."""
    told: CortexError
    match error.failure:
        case TransportFailure.REFUSED | TransportFailure.CONNECT_TIMEOUT:
            told = NeuronUnreachable(
                f"The neuron {neuron.name} cannot be reached.", retry_after_seconds=5
            )
        case TransportFailure.BROKEN | TransportFailure.SILENT:
            told = UpstreamError(f"The neuron {neuron.name} did not answer.")
    return NotServed(after_transport_failure(error.failure), told, error.failure)
