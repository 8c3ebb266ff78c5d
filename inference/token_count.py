"""Asks a neuron how many tokens a conversation has: one that has the model, or else any that could.

No weights are loaded for it, so nothing is dispatched, waited for or recorded: the answer takes
milliseconds. It knows what a neuron's `/tokenize` takes, and no dialect.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Iterator
from typing import Annotated, Any

import msgspec

from fleet.planner.phases import PlacementPhase
from fleet.selectors import ServedModel, ServedNeuron
from inference.fleet_view import FleetView
from inference.neuron_connection import NeuronFailed
from inference.neuron_stream import NeuronConnections
from inference.relay import failure_told
from inference.wire import neuron_answer
from inference.wire.errors import CortexError, NeuronUnreachable, UpstreamError
from neuron_agent.protocol import ErrorCode

PATH = "/tokenize"
PATIENCE_SECONDS = 1.0
"""Counting takes milliseconds: who has not answered by then may hang."""
IDLE_SECONDS = 60.0
"""A neuron that never had the model may have to fetch its tokenizer."""
MAX_ANSWER_BYTES = 1 << 20


_NOT_THERE = (ErrorCode.REPO_FETCH_FAILED, ErrorCode.EMPTY_REPO, ErrorCode.QUANT_NOT_FOUND)
"""The model's files are not on this neuron, and it cannot fetch them."""


class _Count(msgspec.Struct):
    count: Annotated[int, msgspec.Meta(ge=0)]


async def count_tokens(
    connections: NeuronConnections, fleet: FleetView, model: ServedModel, body: bytes, named: str
) -> int:
    """Return the number of tokens of an OpenAI-shaped conversation; `named`: as the client did.

    One neuron is asked; where it fails, or says nothing for a while, the next is asked as well.
    Raises CortexError: what the last of them said if none could tell.
    """
    asked = _question(body, model)
    questions = (
        _ask(connections, neuron, asked, model.model_id, named) for neuron in _neurons(fleet, model)
    )
    error: CortexError = NeuronUnreachable(
        f"No neuron that could run {named[:200]} can be reached.", retry_after_seconds=5
    )
    async with contextlib.aclosing(_answers(questions)) as answers:
        async for told in answers:
            if isinstance(told, int):
                return told
            error = told
            if error.status == 400 or (error.status == 422 and error.code not in _NOT_THERE):
                break  # it would be no better elsewhere
    raise error


async def _answers(
    questions: Iterator[Coroutine[Any, Any, int | CortexError]],
) -> AsyncGenerator[int | CortexError, None]:
    """Yield answers as they come. Ends all that is still asked when it is closed."""
    asking: set[asyncio.Task[int | CortexError]] = set()
    try:
        while (question := next(questions, None)) is not None or asking:
            if question is not None:
                asking.add(asyncio.get_running_loop().create_task(question))
            patience_seconds = None if question is None else PATIENCE_SECONDS
            done, asking = await asyncio.wait(
                asking, timeout=patience_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                yield task.result()
    finally:
        for task in asking:
            task.cancel()


def _question(body: bytes, model: ServedModel) -> bytes:
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    added = {
        "model": model.model_id,
        "source": model.source or None,
        "revision": model.revision or None,
        "quant": model.quant or None,
        "return_tokens": False,
    }
    raw = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in added.items()}
    return msgspec.json.encode({**fields, **raw})


def _neurons(fleet: FleetView, model: ServedModel) -> Iterator[ServedNeuron]:
    """Yield the neurons worth asking: those that have the model first, each once."""
    view = fleet.view
    placements = sorted(
        fleet.placements_of(model.model_id), key=lambda p: p.phase is not PlacementPhase.READY
    )
    having = [view.neurons[p.neuron_id] for p in placements if p.neuron_id in view.neurons]
    everywhere = list(view.neurons.values())
    feasible = [neuron for neuron in everywhere if neuron.name in model.feasible_on]
    # Just after a start it is not known yet what a neuron's devices could hold.
    for neuron in dict.fromkeys([*having, *(feasible or everywhere)]):
        if fleet.is_reachable(neuron.name):
            yield neuron


async def _ask(
    connections: NeuronConnections, neuron: ServedNeuron, body: bytes, model_id: str, named: str
) -> int | CortexError:
    """Return what a neuron counts, or else what a client is told of it."""
    headers = [("content-type", "application/json")]
    if neuron.token is not None:
        headers.append(("authorization", f"Bearer {neuron.token}"))
    try:
        answer = await connections.post(neuron.endpoint, PATH, headers, body, IDLE_SECONDS)
        with contextlib.closing(answer):
            said = await answer.read(MAX_ANSWER_BYTES)
    except NeuronFailed as failure:
        return failure_told(failure, neuron)
    if answer.status != 200:
        retry_after = answer.headers.get("retry-after", "")
        return neuron_answer.read_refusal(answer.status, said, retry_after, model_id, named)
    try:
        return msgspec.json.decode(said, type=_Count).count
    except neuron_answer.UNREADABLE:
        return UpstreamError(f"The neuron {neuron.name} did not tell a count.")
