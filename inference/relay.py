"""Carries one request to one neuron and its answer back, cancelled at once.

Whatever ends this early, a client that leaves among it, cuts the connection to the neuron, and the
neuron takes the request out of its batch. It knows one placement: where to go when that one does
not answer is told by `NotServed` and done by the gateway.
"""

import asyncio
import contextlib
from dataclasses import dataclass

from fleet.selectors import ServedNeuron
from inference.dispatch.failover import (
    NextStep,
    TransportFailure,
    after_refusal,
    after_transport_failure,
)
from inference.neuron_connection import NeuronFailed
from inference.neuron_stream import NeuronAnswer, NeuronConnections
from inference.reply import Reply
from inference.request_facts import RequestFacts
from inference.wire import neuron_answer, openai
from inference.wire.dialect import InferenceRequest
from inference.wire.errors import (
    CortexError,
    NeuronAnswered,
    NeuronUnreachable,
    UpstreamError,
)
from neuron_agent.protocol import FRAMES_HEADER, REQUEST_ID_HEADER

STREAM_IDLE_SECONDS = 60.0
"""A neuron that is well sends a frame every second, also while it has no token."""
WHOLE_IDLE_SECONDS = 600.0
LINGER_SECONDS = 1.0
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


@dataclass(frozen=True, slots=True)
class Question:
    """What a neuron is asked, whichever it will be."""

    path: str
    request: InferenceRequest
    reply: Reply


async def deliver(
    connections: NeuronConnections, neuron: ServedNeuron, question: Question, facts: RequestFacts
) -> None:
    """Ask the neuron and give its answer to the client.

    Raises NotServed, and UpstreamError for an answer that broke off after it had begun.
    """
    try:
        answer = await _ask(connections, neuron, question, facts)
    except NeuronFailed as error:
        raise _not_served(error, neuron) from None
    try:
        if answer.status != 200:
            raise await _refusal(answer, facts)
        await question.reply.carry(answer)
        await _let_end(answer)
    except NeuronAnswered as error:
        if facts.first_token is not None:
            raise
        raise NotServed(after_refusal(error.status, error.code), error) from None
    except NeuronFailed as error:
        if facts.first_token is not None:
            raise UpstreamError("The neuron broke off its answer.") from None
        raise _not_served(error, neuron) from None
    finally:
        answer.close()


async def _ask(
    connections: NeuronConnections, neuron: ServedNeuron, question: Question, facts: RequestFacts
) -> NeuronAnswer:
    headers = [
        ("content-type", "application/json"),
        (REQUEST_ID_HEADER, facts.request_id),
        (FRAMES_HEADER, "1"),
    ]
    if neuron.token is not None:
        headers.append(("authorization", f"Bearer {neuron.token}"))
    body = openai.body_for(question.request, facts.model)
    idle_seconds = STREAM_IDLE_SECONDS if question.reply.is_stream else WHOLE_IDLE_SECONDS
    return await connections.post(neuron.endpoint, question.path, headers, body, idle_seconds)


async def _let_end(answer: NeuronAnswer) -> None:
    """Give the neuron a moment to end what the client has all of: only then is it used again."""
    if answer.is_complete:
        return
    with contextlib.suppress(NeuronFailed, TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while await answer.next_piece():
                pass


async def _refusal(answer: NeuronAnswer, facts: RequestFacts) -> NotServed:
    body = await answer.read(MAX_REFUSAL_BYTES)
    retry_after = answer.headers.get("retry-after", "")
    error = neuron_answer.read_refusal(
        answer.status, body, retry_after, facts.model, facts.requested_model
    )
    return NotServed(after_refusal(answer.status, error.code), error)


def _not_served(error: NeuronFailed, neuron: ServedNeuron) -> NotServed:
    told = failure_told(error, neuron)
    return NotServed(after_transport_failure(error.failure), told, error.failure)


def failure_told(error: NeuronFailed, neuron: ServedNeuron) -> CortexError:
    """Say it in words for the client: which neuron, not where it is."""
    match error.failure:
        case TransportFailure.REFUSED | TransportFailure.CONNECT_TIMEOUT:
            return NeuronUnreachable(
                f"The neuron {neuron.name} cannot be reached.", retry_after_seconds=5
            )
        case TransportFailure.BROKEN | TransportFailure.SILENT:
            return UpstreamError(f"The neuron {neuron.name} did not answer.")
