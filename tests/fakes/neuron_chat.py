"""The chat answers of a fake neuron: what a neuron's frames look like, with words for tokens.

The first chunk carries the role and the first token; then one chunk a token, one with the finish
reason, one with the usage if it was asked for, `[DONE]`. Who asks for control frames gets the
prompt's usage before the first chunk, and all of it before `[DONE]`. A script says more than words.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from neuron_agent.protocol import (
    CONTROL_FRAME_PREFIX,
    FRAMES_HEADER,
    ControlFrame,
    Progress,
    Timing,
    Usage,
)
from tests.fakes.http_server import Exchange
from tests.fakes.neuron_knobs import Knobs, pause, until
from tests.fakes.scripted_reply import ScriptedReply


@dataclass(frozen=True, slots=True)
class StreamOptions:
    include_usage: bool = False


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What the fake reads of a chat request; the rest it only records."""

    model: str
    messages: list[dict[str, object]]
    stream: bool = False
    stream_options: StreamOptions = field(default_factory=StreamOptions)
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    tools: list[msgspec.Raw] | None = None


@dataclass(frozen=True, slots=True)
class _Reply:
    """What will be said to a request, decided before the first token."""

    model: str
    deltas: tuple[dict[str, Any], ...]
    """One for each token."""
    message: dict[str, Any]
    finish_reason: str
    usage: Usage
    created: int
    stop_sequence: str | None = None

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return _frame(self._body("chat.completion.chunk", [choice]))

    def usage_chunk(self) -> bytes:
        body = self._body("chat.completion.chunk", [])
        return _frame(body | {"usage": _openai_usage(self.usage)})

    def whole(self) -> bytes:
        choice = {"index": 0, "message": self.message, "finish_reason": self.finish_reason}
        body = self._body("chat.completion", [choice])
        return msgspec.json.encode(body | {"usage": _openai_usage(self.usage)})

    def _body(self, kind: str, choices: list[dict[str, object]]) -> dict[str, object]:
        return {
            "id": "chatcmpl-fake",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


async def stream_reply(exchange: Exchange, request: ChatRequest, knobs: Knobs) -> None:
    """Stream the answer, at the pace and with the faults the knobs ask for."""
    with_frames = exchange.headers.get(FRAMES_HEADER) == "1"
    reply = _plan(request, knobs)
    exchange.start_stream()
    await _wait_for_first_token(exchange, knobs, with_frames)
    if knobs.scripted_frames is not None:
        for piece in knobs.scripted_frames:
            await exchange.write(piece)
        exchange.end_stream()
        return
    if with_frames:
        read = replace(reply.usage, completion_tokens=0)
        await exchange.write(_control_frame(ControlFrame(usage=read)))
    for num_sent, delta in enumerate(reply.deltas[: knobs.drop_connection_after_tokens]):
        if num_sent:
            await pause(lambda: knobs.token_delay_seconds)
        role = {} if num_sent else {"role": "assistant"}
        await exchange.write(reply.chunk(role | delta))
    if knobs.drop_connection_after_tokens is not None:
        exchange.drop()
        return
    include_usage = request.stream_options.include_usage
    await exchange.write(b"".join(_last_frames(reply, include_usage, with_frames)))
    exchange.end_stream()


async def whole_reply(exchange: Exchange, request: ChatRequest, knobs: Knobs) -> None:
    """Answer in one piece, after the time the stream would have taken."""
    reply = _plan(request, knobs)
    await pause(lambda: knobs.first_token_delay_seconds)
    await pause(lambda: knobs.token_delay_seconds * (len(reply.deltas) - 1))
    exchange.answer(200, reply.whole())


def _plan(request: ChatRequest, knobs: Knobs) -> _Reply:
    """Decide what to say. A prompt counts as many tokens as it has words."""
    if request.tools and knobs.script:
        return _plan_scripted(request, knobs.script.pop(0), knobs)
    tokens = knobs.reply_tokens or tuple(f"word{n} " for n in range(knobs.num_tokens))
    limit = request.max_completion_tokens or request.max_tokens or len(tokens)
    until_stop, stop_sequence = _until_stop(tokens, request.stop)
    said = until_stop[:limit]
    return _Reply(
        model=request.model,
        deltas=tuple({"content": token} for token in said),
        message={"role": "assistant", "content": "".join(said)},
        finish_reason="stop" if len(said) == len(until_stop) else "length",
        usage=Usage(count_prompt(request.messages), len(said), cached_tokens=knobs.cached_tokens),
        created=int(time.time()),
        stop_sequence=stop_sequence if said == until_stop else None,
    )


def _plan_scripted(request: ChatRequest, said: ScriptedReply, knobs: Knobs) -> _Reply:
    deltas = tuple(said.deltas())
    prompt_tokens = count_prompt(request.messages)
    return _Reply(
        model=request.model,
        deltas=deltas,
        message=said.message(),
        finish_reason=said.finish_reason,
        usage=Usage(prompt_tokens, len(deltas), cached_tokens=knobs.cached_tokens),
        created=int(time.time()),
    )


def count_prompt(messages: list[dict[str, object]]) -> int:
    """Return how many tokens a conversation counts as."""
    return len(" ".join(str(message.get("content")) for message in messages).split())


def _until_stop(
    tokens: tuple[str, ...], stop: str | list[str] | None
) -> tuple[tuple[str, ...], str | None]:
    """Return the tokens before the first one that holds a stop string, and which one that is."""
    stops = [stop] if isinstance(stop, str) else stop or []
    for num_before, token in enumerate(tokens):
        for each in stops:
            if each in token:
                return tokens[:num_before], each
    return tokens, None


async def _wait_for_first_token(exchange: Exchange, knobs: Knobs, with_frames: bool) -> None:
    waiting = _control_frame(ControlFrame(progress=Progress("queued")))
    frame = waiting if with_frames else b": keep-alive\n\n"
    began_at = time.monotonic()

    def remaining() -> float:
        return began_at + knobs.first_token_delay_seconds - time.monotonic()

    while not await until(lambda: remaining() <= 0, lambda: knobs.frame_interval_seconds):
        await exchange.write(frame)


def _last_frames(reply: _Reply, include_usage: bool, with_frames: bool) -> Iterator[bytes]:
    yield reply.chunk({}, reply.finish_reason)
    if include_usage:
        yield reply.usage_chunk()
    if with_frames:
        yield _control_frame(
            ControlFrame(
                usage=reply.usage,
                timing=Timing(queue_ms=0.5, prefill_ms=2.0, decode_ms=float(len(reply.deltas))),
                finish_reason=reply.finish_reason,
                stop_sequence=reply.stop_sequence,
            )
        )
    yield b"data: [DONE]\n\n"


def _frame(body: dict[str, object]) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def _control_frame(frame: ControlFrame) -> bytes:
    return CONTROL_FRAME_PREFIX + msgspec.json.encode(frame) + b"\n\n"


def _openai_usage(usage: Usage) -> dict[str, object]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
