"""One chat request from words to words: template, tokens, admission, device, text, events.

It owns a request's place: whoever stops listening, the request is out of the batch and its place
given back. It knows what OpenAI's parameters mean for the device, and no HTTP.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from neuron_agent.devices.channel import Output, Sampling, Submit
from neuron_agent.errors import BadRequest, Conflict, NeuronError, RequestFailed, Unavailable
from neuron_agent.errors import Unprocessable as Unrenderable
from neuron_agent.managed_device import ManagedDevice
from neuron_agent.model_state import ModelState, RunningRequest
from neuron_agent.model_text import ModelText, SamplingDefaults
from neuron_agent.protocol import ErrorCode, Timing, Usage
from neuron_agent.supervisor import Supervisor
from neuron_agent.text.detokenizer import Detokenizer
from neuron_agent.text.stop import StopScanner
from neuron_agent.wire.chat_request import ChatRequest, RenderInput
from neuron_agent.wire.events import ChatEvent, Finished, TextDelta, Waited

log = structlog.get_logger()

SILENCE_SECONDS = 1.0
"""After so long without text the listener hears where the request is."""
BIG_CONVERSATION_BYTES = 8_000
"""From here on rendering and tokenising would make other streams wait: they go to a thread."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the id this request can be cancelled by, and whose share it counts against."""

    request_id: str
    principal: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request ready for the device."""

    token_ids: list[int]
    max_tokens: int
    stop_ids: list[int]
    sampling: Sampling


async def generate(
    supervisor: Supervisor, chat: ChatRequest, caller: Caller
) -> AsyncGenerator[ChatEvent, None]:
    """Yield the events of one request; the last one is Finished.

    Raises NeuronError. Closing the iterator, at any point, cancels the request.
    """
    model = supervisor.find(chat.model)
    request = model.admit(f"req-{uuid.uuid4().hex}", caller.request_id)
    try:
        prompt = await prepare_prompt(model, chat)
        run = _Run(request, supervisor, chat, prompt, caller)
        async with aclosing(run.events()) as events:
            async for event in events:
                yield event
    finally:
        model.release(request)


async def prepare_prompt(model: ModelState, chat: ChatRequest) -> Prompt:
    """Return what the device is to do. Raises BadRequest if it does not fit the context."""
    assert model.text is not None
    assert model.ready is not None
    token_ids = await tokenize_conversation(model.text, chat.conversation)
    remaining = model.ready.context_tokens - len(token_ids)
    if remaining < 1:
        raise BadRequest(
            f"prompt is too long: {len(token_ids)} tokens > "
            f"{model.ready.context_tokens - 1} maximum",
            param="messages",
            code=ErrorCode.CONTEXT_LENGTH_EXCEEDED,
        )
    return Prompt(
        token_ids=token_ids,
        max_tokens=min(chat.max_tokens or remaining, remaining),
        stop_ids=[] if chat.ignores_stop_tokens else list(model.text.stop_ids),
        sampling=choose_sampling(chat, model.text.defaults),
    )


def choose_sampling(chat: ChatRequest, defaults: SamplingDefaults) -> Sampling:
    """Return how to sample: the request's word, else the model's."""
    return Sampling(
        temperature=defaults.temperature if chat.temperature is None else chat.temperature,
        top_p=defaults.top_p if chat.top_p is None else chat.top_p,
        top_k=defaults.top_k if chat.top_k is None else chat.top_k,
        seed=chat.seed,
    )


async def tokenize_conversation(text: ModelText, conversation: RenderInput) -> list[int]:
    """Return a conversation's token ids as the model sees them. Raises NeuronError."""
    if conversation.body_bytes < BIG_CONVERSATION_BYTES and not conversation.tools:
        return _render_and_encode(text, conversation)
    return await asyncio.to_thread(_render_and_encode, text, conversation)


def _render_and_encode(text: ModelText, conversation: RenderInput) -> list[int]:
    if text.template is None:
        raise Unrenderable("the model has no chat template", code=ErrorCode.TEMPLATE_RENDER_FAILED)
    rendered = text.template.render(
        conversation.messages, conversation.tools, conversation.template_kwargs
    )
    token_ids = text.encode(rendered)
    if not token_ids:
        raise BadRequest("the prompt is empty", param="messages")
    return token_ids


class _Run:
    """The part of a request that the device works on."""

    def __init__(
        self,
        request: RunningRequest,
        supervisor: Supervisor,
        chat: ChatRequest,
        prompt: Prompt,
        caller: Caller,
    ) -> None:
        assert request.model.text is not None
        self._request = request
        self._device: ManagedDevice = supervisor.device_of(request.model)
        self._prompt = prompt
        self._caller = caller
        self._max_wait_seconds = supervisor.config.max_wait_seconds
        self._detokenizer = Detokenizer(request.model.text.tokenizer)
        self._stop = StopScanner(chat.stops)
        self._log = log.bind(request=caller.request_id, model=request.model.id)
        self._stage = "queued"
        self._prefill_done = 0
        self._num_tokens = 0
        self._cached_tokens = 0
        self._queue_ms = 0.0
        self._prefill_ms = 0.0
        self._submitted_at = 0.0
        self._first_token_at: float | None = None

    async def events(self) -> AsyncGenerator[ChatEvent, None]:
        """Submit, then turn outputs to events until the finish; silence is an event too."""
        self._submit()
        has_failed = is_finished = False
        silent_until = time.monotonic() + SILENCE_SECONDS
        try:
            while not is_finished:
                output = await self._next_output(silent_until - time.monotonic())
                for event in self._take(output):
                    is_finished = isinstance(event, Finished)
                    silent_until = time.monotonic() + SILENCE_SECONDS
                    yield event
        except NeuronError as error:
            has_failed = True
            self._log.warning("request failed", code=error.code, error=error.message)
            raise
        finally:
            self._device.cancel(self._request)
            self._count(has_ended=is_finished or has_failed)

    def _submit(self) -> None:
        sampling = self._prompt.sampling
        self._log.info(
            "request start",
            prompt_tokens=len(self._prompt.token_ids),
            max_tokens=self._prompt.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
        )
        self._submitted_at = time.monotonic()
        self._device.submit(
            self._request,
            Submit(
                request_id=self._request.id,
                model_id=self._request.model.id,
                prompt_ids=self._prompt.token_ids,
                max_tokens=self._prompt.max_tokens,
                stop_ids=self._prompt.stop_ids,
                sampling=sampling,
                principal=self._caller.principal,
            ),
        )

    async def _next_output(self, seconds: float) -> Output | None:
        """Return the device's next word, None if there is none for so long."""
        outputs = self._request.outputs
        if not outputs.empty():
            return outputs.get_nowait()
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                return await outputs.get()
        except TimeoutError:
            return None

    def _take(self, output: Output | None) -> list[ChatEvent]:
        """Return the events an output (or silence) means. Raises what ended the request."""
        if output is None:
            self._check_wait()
            done = self._prefill_done
            return [Waited(self._stage, done, len(self._prompt.token_ids))]
        self._note(output)
        text = self._stop.feed(self._detokenizer.feed(output.token_ids))
        if self._stop.hit is not None:
            return self._close(text, "stop", output)
        match output.finish:
            case None:
                return [TextDelta(text)] if text else []
            case "stop" | "length" as reason:
                rest = self._stop.feed(self._detokenizer.finish())
                if self._stop.hit is None:
                    rest += self._stop.finish()
                return self._close(text + rest, reason, output)
            case _:
                raise self._failure(output)

    def _note(self, output: Output) -> None:
        """Keep what an output says beside its tokens."""
        self._num_tokens += len(output.token_ids)
        if output.prefill_done is not None and self._first_token_at is None:
            self._stage, self._prefill_done = "prefill", output.prefill_done
        self._cached_tokens = output.cached_tokens or self._cached_tokens
        self._queue_ms = output.queue_ms or self._queue_ms
        self._prefill_ms = output.prefill_ms or self._prefill_ms
        if self._first_token_at is None and output.token_ids:
            self._stage, self._first_token_at = "decode", time.monotonic()
            self._log.info("prefill done", ms=round(self._prefill_ms, 1))

    def _check_wait(self) -> None:
        """Raise Unavailable if the request is still queued after all the wait it may have."""
        waited_seconds = time.monotonic() - self._submitted_at
        if self._stage == "queued" and waited_seconds > self._max_wait_seconds:
            self._request.model.rejected["waited_too_long"] += 1
            raise Unavailable("no place came free in time", code=ErrorCode.SATURATED)

    def _close(self, text: str, reason: str, output: Output) -> list[ChatEvent]:
        if output.num_generated is not None:
            self._num_tokens = output.num_generated
        decode_ms = 0.0
        if self._first_token_at is not None:
            decode_ms = (time.monotonic() - self._first_token_at) * 1000
        usage = Usage(len(self._prompt.token_ids), self._num_tokens, self._cached_tokens)
        timing = Timing(self._queue_ms, self._prefill_ms, round(decode_ms, 3))
        finished = Finished(reason, usage, timing)
        self._log_end(finished)
        return [TextDelta(text), finished] if text else [finished]

    def _failure(self, output: Output) -> NeuronError:
        """Return what a finish that is no good end means for the caller."""
        if output.finish == "cancelled" and self._request.is_cancelled_by_caller:
            return Conflict("the request was cancelled", code="request_cancelled")
        if output.finish == "cancelled":
            message = "the model was unloaded"
            return Unavailable(message, code=ErrorCode.MODEL_NOT_LOADED)
        if output.finish == "device_fault":
            code = output.error_code or ErrorCode.DEVICE_FAULT
            return Unavailable(output.error or "the device failed", code=code)
        return _refusal(output)

    def _count(self, *, has_ended: bool) -> None:
        model = self._request.model
        model.prompt_tokens_total += len(self._prompt.token_ids)
        model.completion_tokens_total += self._num_tokens
        if not has_ended:
            self._log.info("request left", tokens=self._num_tokens)

    def _log_end(self, finished: Finished) -> None:
        seconds = finished.timing.decode_ms / 1000
        self._log.info(
            "request end",
            finish_reason=finished.reason,
            tokens=finished.usage.completion_tokens,
            queue_ms=round(finished.timing.queue_ms, 1),
            prefill_ms=round(finished.timing.prefill_ms, 1),
            decode_ms=round(finished.timing.decode_ms, 1),
            tok_s=round((self._num_tokens - 1) / seconds, 1) if seconds > 0 else None,
        )


def _refusal(output: Output) -> NeuronError:
    """Return what it means for the caller that the device did not take or finish a request."""
    match output.error_code:
        case ErrorCode.INVALID_REQUEST | ErrorCode.CONTEXT_LENGTH_EXCEEDED as code:
            return BadRequest(output.error or "the request cannot be served", code=code)
        case ErrorCode.MODEL_NOT_LOADED as code:
            return Unavailable("the model was unloaded", code=code)
        case code:
            message = "the request failed on the device"
            return RequestFailed(message, code=code or ErrorCode.REQUEST_FAILED)


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
