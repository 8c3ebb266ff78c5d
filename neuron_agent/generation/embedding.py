"""The embeddings of one request: each input is a request to the device, several of them at a time.

A request holds one place for each input that is on the device, and passes it on to the next input.
It knows no HTTP.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from neuron_agent.devices.channel import Output, Submit
from neuron_agent.errors import NeuronError, Unavailable
from neuron_agent.generation.failures import failure_of
from neuron_agent.generation.plan import check_length, tokenize_prompts
from neuron_agent.generation.request import Caller, new_request_id
from neuron_agent.model_state import ModelState, RunningRequest
from neuron_agent.protocol import ErrorCode
from neuron_agent.supervisor import Supervisor
from neuron_agent.wire.embeddings import EmbeddingRequest

log = structlog.get_logger()

MAX_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of all inputs, in their order, and how many tokens those had."""

    vectors: list[list[float]]
    num_tokens: int


async def embed(supervisor: Supervisor, request: EmbeddingRequest, caller: Caller) -> Embedded:
    """Return the embeddings of a request. Raises NeuronError. Cancelling it frees its places."""
    model = supervisor.find_serving(request.model)
    first = model.admit(new_request_id(), caller.request_id, caller.principal)
    places = [first]
    try:
        assert model.text is not None
        inputs = await tokenize_prompts(model.text, request.inputs, param="input")
        for token_ids in inputs:
            check_length(model, len(token_ids), param="input")
        # Half of what is left: embeddings of a large corpus leave room for those who talk.
        num_more = min(MAX_AT_ONCE, len(inputs), 1 + model.num_places_for(caller.principal) // 2)
        for _ in range(num_more - 1):
            places.append(model.admit(new_request_id(), caller.request_id, caller.principal))
        vectors = await _Embedding(supervisor, model, inputs, caller).run(places)
    finally:
        for place in places:
            model.release(place)
    return Embedded(vectors, sum(len(token_ids) for token_ids in inputs))


class _Embedding:
    """Inputs on their way through the device."""

    def __init__(
        self,
        supervisor: Supervisor,
        model: ModelState,
        inputs: list[list[int]],
        caller: Caller,
    ) -> None:
        self._model = model
        self._device = supervisor.device_of(model)
        self._max_wait_seconds = supervisor.config.max_wait_seconds
        self._inputs = inputs
        self._vectors: list[list[float]] = [[] for _ in inputs]
        self._log = log.bind(request=caller.request_id, model=model.id)

    async def run(self, places: list[RunningRequest]) -> list[list[float]]:
        """Return all vectors. Raises the first failure, when nothing of it runs any more."""
        self._log.info("embedding start", inputs=len(self._inputs))
        todo = iter(range(len(self._inputs)))
        lanes = [asyncio.create_task(self._lane(place, todo)) for place in places]
        try:
            await asyncio.gather(*lanes)
        except NeuronError as error:
            self._log.warning("request failed", code=error.code, error=error.message)
            raise
        finally:
            for lane in lanes:
                lane.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)
            self._model.prompt_tokens_total += sum(map(len, self._inputs))
        self._log.info("embedding end", inputs=len(self._inputs))
        return self._vectors

    async def _lane(self, place: RunningRequest, todo: Iterator[int]) -> None:
        """Take inputs while there are any, one after another, in one place."""
        place.keeps_place = True
        try:
            for index in todo:
                self._vectors[index] = await self._embed(place, self._inputs[index])
                place = self._model.renew(place, new_request_id())
        finally:
            self._model.release(place)

    async def _embed(self, place: RunningRequest, token_ids: list[int]) -> list[float]:
        command = Submit(
            request_id=place.id,
            model_id=self._model.id,
            prompt_ids=token_ids,
            max_tokens=1,
            stop_ids=[],
            principal=place.principal,
            wants_embedding=True,
        )
        self._device.submit(place, command)
        try:
            return await self._vector(place)
        finally:
            self._device.cancel(place)

    async def _vector(self, place: RunningRequest) -> list[float]:
        output = await self._first_output(place)
        while output.finish is None:
            output = await place.outputs.get()
        if output.finish == "stop" and output.embedding is not None:
            return output.embedding
        raise failure_of(output, is_cancelled_by_caller=place.is_cancelled_by_caller)

    async def _first_output(self, place: RunningRequest) -> Output:
        try:
            async with asyncio.timeout(self._max_wait_seconds):
                return await place.outputs.get()
        except TimeoutError:
            self._model.reject("waited_too_long")
            raise Unavailable(
                "no place came free in time",
                code=ErrorCode.SATURATED,
                retry_after_seconds=self._model.retry_after_seconds,
            ) from None
