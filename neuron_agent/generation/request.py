"""One request from words to words: admission, plan, device, events.

It owns a request's places, one for each choice: whoever stops listening, the request is out of the
batch and its places are given back. It knows no HTTP.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import structlog

from neuron_agent.devices.channel import Output, Submit
from neuron_agent.errors import NeuronError, Unavailable
from neuron_agent.generation.choice import QUEUED, STAGES, Choice
from neuron_agent.generation.failures import failure_of
from neuron_agent.generation.plan import Plan, plan_chat, plan_completion
from neuron_agent.model_state import ModelState, RunningRequest
from neuron_agent.protocol import ErrorCode, Timing, Usage
from neuron_agent.supervisor import Supervisor
from neuron_agent.wire.chat_request import ChatRequest
from neuron_agent.wire.completion_request import CompletionRequest
from neuron_agent.wire.events import ChatEvent, Finished, PromptRead, Waited

log = structlog.get_logger()

SILENCE_SECONDS = 1.0
"""After so long without text the listener hears where the request is."""
SILENCE = Output("", [])
"""What stands among the device's words after such a time."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the id this request can be cancelled by, and whose share it counts against."""

    request_id: str
    principal: str = ""


def generate_chat(
    supervisor: Supervisor, chat: ChatRequest, caller: Caller
) -> AsyncGenerator[ChatEvent, None]:
    """Yield the events of a chat; the last one is Finished.

    Raises NeuronError. Closing the iterator, at any point, cancels the request.
    """

    async def plan(model: ModelState) -> list[Plan]:
        return [await plan_chat(model, chat)]

    return _generate(supervisor, chat.model, 1, chat.sampling.num_choices, plan, caller)


def generate_completion(
    supervisor: Supervisor, request: CompletionRequest, caller: Caller
) -> AsyncGenerator[ChatEvent, None]:
    """Yield the events of a text completion, as `generate_chat` does."""

    async def plan(model: ModelState) -> list[Plan]:
        return await plan_completion(model, request)

    num_prompts, num_choices = len(request.prompts), request.sampling.num_choices
    return _generate(supervisor, request.model, num_prompts, num_choices, plan, caller)


async def _generate(
    supervisor: Supervisor,
    model_id: str,
    num_prompts: int,
    num_choices: int,
    make_plans: Callable[[ModelState], Awaitable[Sequence[Plan]]],
    caller: Caller,
) -> AsyncGenerator[ChatEvent, None]:
    model = supervisor.find_serving(model_id)
    request_ids = [new_request_id() for _ in range(num_prompts * num_choices)]
    places = model.admit_all(request_ids, caller.request_id, caller.principal)
    try:
        run = _Run(supervisor, places, await make_plans(model), caller)
        async with aclosing(run.events()) as events:
            async for event in events:
                yield event
    finally:
        for place in places:
            model.release(place)


def new_request_id() -> str:
    return f"req-{uuid.uuid4().hex}"


def _new_call_id() -> str:
    return f"call_{uuid.uuid4().hex}"


@dataclass(frozen=True, slots=True)
class _Running:
    """A choice and its place; the n-th choice of its prompt."""

    place: RunningRequest
    choice: Choice
    plan: Plan
    number: int


class _Run:
    """The part of a request that the device works on."""

    def __init__(
        self,
        supervisor: Supervisor,
        places: Sequence[RunningRequest],
        plans: Sequence[Plan],
        caller: Caller,
    ) -> None:
        self._model = places[0].model
        self._outputs = places[0].outputs  # one queue for all of them
        self._device = supervisor.device_of(self._model)
        self._plans = plans
        self._max_wait_seconds = supervisor.config.max_wait_seconds
        self._log = log.bind(request=caller.request_id, model=self._model.id)
        self._all = self._assign(places)
        self._running = {running.place.id: running for running in self._all}
        self._submitted_at = 0.0
        self._first_token_at: float | None = None
        self._has_read_prompt = False

    def _assign(self, places: Sequence[RunningRequest]) -> list[_Running]:
        """Return the choices of all prompts, those of one prompt next to each other."""
        assert self._model.text is not None
        text, num_choices = self._model.text, len(places) // len(self._plans)
        return [
            _Running(
                place,
                Choice(index, plan, text, _new_call_id),
                plan,
                index % num_choices,
            )
            for index, place in enumerate(places)
            for plan in [self._plans[index // num_choices]]
        ]

    async def events(self) -> AsyncGenerator[ChatEvent, None]:
        """Submit, then turn outputs to events until the finish; silence is an event too."""
        has_ended = False
        alarm = _SilenceAlarm(self._outputs)
        try:
            self._submit()
            while self._running:
                for event in self._take(await self._outputs.get()):
                    alarm.postpone()
                    yield event
            has_ended = True
            finished = self._finished()
            self._log_end(finished)
            yield finished
        except NeuronError as error:
            has_ended = True
            self._log.warning("request failed", code=error.code, error=error.message)
            raise
        finally:
            alarm.cancel()
            for running in self._running.values():
                self._device.cancel(running.place)
            self._count(has_ended=has_ended)

    def _submit(self) -> None:
        sampling = self._plans[0].sampling
        self._log.info(
            "request start",
            prompt_tokens=self._num_prompt_tokens,
            max_tokens=self._plans[0].max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            choices=len(self._all),
        )
        self._submitted_at = time.monotonic()
        for running in self._all:
            self._device.submit(running.place, _command(running))

    def _take(self, output: Output) -> list[ChatEvent]:
        """Return the events an output (or silence) means. Raises what ended the request."""
        if output is SILENCE:
            self._check_wait()
            return [self._waited()]
        running = self._running.get(output.request_id)
        if running is None:
            return []  # of a choice that was cut before
        if output.finish not in (None, "stop", "length"):
            raise failure_of(output, is_cancelled_by_caller=running.place.is_cancelled_by_caller)
        if self._first_token_at is None and output.token_ids:
            self._first_token_at = time.monotonic()
            self._log.info("prefill done", ms=round(output.prefill_ms or 0.0, 1))
        events = running.choice.take(output)
        if running.choice.finish_reason is not None:
            self._end(running)
        if events and not self._has_read_prompt:
            self._has_read_prompt = True
            return [PromptRead(self._prompt_usage()), *events]
        return events

    def _end(self, running: _Running) -> None:
        """Let go of a choice that is complete; the device may not know it yet."""
        del self._running[running.place.id]
        self._device.cancel(running.place)
        self._model.release(running.place)

    def _waited(self) -> Waited:
        """Return where the slowest choice is."""
        choices = [running.choice for running in self._running.values()]
        slowest = min(choices, key=lambda c: (STAGES.index(c.stage), c.prefill_done))
        total = len(self._all[slowest.index].plan.token_ids)
        return Waited(slowest.stage, slowest.prefill_done, total)

    def _check_wait(self) -> None:
        """Raise Unavailable if it is still queued, whole, after all the wait it may have."""
        is_queued = all(running.choice.stage == QUEUED for running in self._all)
        waited_seconds = time.monotonic() - self._submitted_at
        if is_queued and waited_seconds > self._max_wait_seconds:
            self._model.reject("waited_too_long")
            raise Unavailable(
                "no place came free in time",
                code=ErrorCode.SATURATED,
                retry_after_seconds=self._model.retry_after_seconds,
            )

    # --- accounts ---------------------------------------------------------------------------------

    @property
    def _num_prompt_tokens(self) -> int:
        """Each prompt counts once, however many choices it has."""
        return sum(len(plan.token_ids) for plan in self._plans)

    def _prompt_usage(self) -> Usage:
        """Return what the prompts cost, as far as they are read; the choices of one share it."""
        cached_tokens = sum(r.choice.cached_tokens for r in self._all if r.number == 0)
        return Usage(self._num_prompt_tokens, completion_tokens=0, cached_tokens=cached_tokens)

    @property
    def _num_tokens(self) -> int:
        return sum(running.choice.num_tokens for running in self._all)

    def _finished(self) -> Finished:
        choices = [running.choice for running in self._all]
        reason = choices[0].finish_reason
        assert reason is not None
        decode_ms = 0.0
        if self._first_token_at is not None:
            decode_ms = (time.monotonic() - self._first_token_at) * 1000
        usage = replace(
            self._prompt_usage(),
            completion_tokens=self._num_tokens,
            reasoning_tokens=sum(choice.num_reasoning_tokens for choice in choices),
        )
        timing = Timing(
            queue_ms=max(choice.queue_ms for choice in choices),
            prefill_ms=max(choice.prefill_ms for choice in choices),
            decode_ms=round(decode_ms, 3),
        )
        return Finished(reason, usage, timing, choices[0].stop_sequence)

    def _count(self, *, has_ended: bool) -> None:
        self._model.prompt_tokens_total += self._num_prompt_tokens
        self._model.completion_tokens_total += self._num_tokens
        if not has_ended:
            self._log.info("request left", tokens=self._num_tokens)

    def _log_end(self, finished: Finished) -> None:
        seconds = finished.timing.decode_ms / 1000
        num_later = finished.usage.completion_tokens - len(self._all)
        self._log.info(
            "request end",
            finish_reason=finished.reason,
            tokens=finished.usage.completion_tokens,
            queue_ms=round(finished.timing.queue_ms, 1),
            prefill_ms=round(finished.timing.prefill_ms, 1),
            decode_ms=round(finished.timing.decode_ms, 1),
            tok_s=round(num_later / seconds, 1) if seconds > 0 else None,
        )


class _SilenceAlarm:
    """Says SILENCE after each second without an event: one timer a second, not one a token."""

    def __init__(self, outputs: asyncio.Queue[Output]) -> None:
        self._outputs = outputs
        self._loop = asyncio.get_running_loop()
        self._due_at = 0.0
        self.postpone()
        self._timer = self._loop.call_later(SILENCE_SECONDS, self._look)

    def postpone(self) -> None:
        self._due_at = time.monotonic() + SILENCE_SECONDS

    def cancel(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        if time.monotonic() >= self._due_at:
            if self._outputs.empty():  # else it is the listener who is behind
                self._outputs.put_nowait(SILENCE)
            self.postpone()
        seconds = max(0.0, self._due_at - time.monotonic())
        self._timer = self._loop.call_later(seconds, self._look)


def _command(running: _Running) -> Submit:
    plan, place = running.plan, running.place
    return Submit(
        request_id=place.id,
        model_id=place.model.id,
        prompt_ids=plan.token_ids,
        max_tokens=plan.max_tokens,
        stop_ids=plan.stop_ids,
        sampling=plan.sampling_of(running.number),
        principal=place.principal,
        min_tokens=plan.min_tokens,
        num_logprobs=plan.num_logprobs,
        grammar=plan.grammar,
    )


def cancel_request(supervisor: Supervisor, request_id: str) -> int:
    """Cancel the running requests of an id; return how many there were."""
    found = [
        request
        for model in supervisor.models.values()
        for request in model.requests.values()
        if request_id in (request.client_id, request.id)
    ]
    for request in found:
        request.is_cancelled_by_caller = True
        supervisor.device_of(request.model).cancel(request)
        request.outputs.put_nowait(Output(request.id, [], finish="cancelled"))
    return len(found)
