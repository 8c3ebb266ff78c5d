"""Asks a neuron how many tokens a conversation has: one that has the model, or else any that could.

No weights are loaded for it, so nothing is dispatched, waited for or recorded: the answer takes
milliseconds. It knows what a neuron's `/tokenize` takes, and no dialect.
"""

from collections.abc import Iterator

import msgspec

from fleet.planner.phases import PlacementPhase
from fleet.selectors import ServedModel, ServedNeuron
from inference.fleet_view import FleetView
from inference.neuron_connection import NeuronFailed
from inference.neuron_stream import NeuronConnections
from inference.wire import neuron_answer
from inference.wire.errors import CortexError, NeuronUnreachable, UpstreamError

PATH = "/tokenize"
IDLE_SECONDS = 60.0
"""A neuron that never had the model may have to fetch its tokenizer."""
MAX_ANSWER_BYTES = 1 << 20


class _Count(msgspec.Struct):
    count: int


async def count_tokens(
    connections: NeuronConnections, fleet: FleetView, model: ServedModel, body: bytes, named: str
) -> int:
    """Return the number of tokens of an OpenAI-shaped conversation; `named`: as the client did.

    Raises CortexError: what the last of the neurons said if none could tell.
    """
    asked = _question(body, model)
    error: CortexError = NeuronUnreachable(
        f"No neuron that could run {named} can be reached.", retry_after_seconds=5
    )
    for neuron in _neurons(fleet, model):
        try:
            return await _ask(connections, neuron, asked, model.model_id, named)
        except NeuronFailed:
            error = UpstreamError(f"The neuron {neuron.name} did not answer.")
        except CortexError as refusal:
            if refusal.status in (400, 422):
                raise  # it would be no better elsewhere
            error = refusal
    raise error


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
    feasible = [neuron for neuron in view.neurons.values() if neuron.name in model.feasible_on]
    for neuron in dict.fromkeys([*having, *feasible]):
        if fleet.is_reachable(neuron.name):
            yield neuron


async def _ask(
    connections: NeuronConnections, neuron: ServedNeuron, body: bytes, model_id: str, named: str
) -> int:
    """Raises NeuronFailed, CortexError."""
    headers = [("content-type", "application/json")]
    if neuron.token is not None:
        headers.append(("authorization", f"Bearer {neuron.token}"))
    answer = await connections.post(neuron.endpoint, PATH, headers, body, IDLE_SECONDS)
    try:
        said = await answer.read(MAX_ANSWER_BYTES)
    finally:
        answer.close()
    if answer.status != 200:
        retry_after = answer.headers.get("retry-after", "")
        raise neuron_answer.read_refusal(answer.status, said, retry_after, model_id, named)
    try:
        return msgspec.json.decode(said, type=_Count).count
    except msgspec.DecodeError:
        raise UpstreamError(f"The neuron {neuron.name} did not tell a count.") from None
