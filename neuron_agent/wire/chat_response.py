"""Chat events to OpenAI's answers: a stream of chunks, or one completion.

The first chunk of each choice carries the role and the first token; a tool call's id and name come
once, before its arguments. It is sans-IO and knows neither tokens nor clocks.
"""

from dataclasses import dataclass, field
from typing import Any, assert_never

import msgspec

from neuron_agent.wire import sse
from neuron_agent.wire.events import (
    ChatEvent,
    ChoiceEvent,
    ChoiceFinished,
    Finished,
    PromptRead,
    ReasoningDelta,
    TextDelta,
    TokenChance,
    TokenLogprobs,
    Tokens,
    ToolArgumentsDelta,
    ToolCallStarted,
    Waited,
)
from neuron_agent.wire.stream_encoder import Framing, ResponseHead, StreamEncoder, usage_body

FIRST = b'{"role":"assistant",'
LATER = b"{"


class ChatStreamEncoder(StreamEncoder):
    """The state is which choices have begun."""

    object_name = "chat.completion.chunk"

    def __init__(self, head: ResponseHead, framing: Framing) -> None:
        super().__init__(head, framing)
        self._begun: set[int] = set()
        self._frames: dict[int, tuple[bytes, bytes]] = {}

    def encode(self, event: ChoiceEvent) -> bytes:
        match event:
            case TextDelta(text, choice, ()):
                return self._delta(choice, b'"content":' + msgspec.json.encode(text))
            case TextDelta(text, choice, logprobs):
                return self._text_with_logprobs(text, choice, logprobs)
            case ReasoningDelta(text, choice):
                return self._delta(choice, b'"reasoning_content":' + msgspec.json.encode(text))
            case ToolCallStarted():
                return self._tool_call(event.choice, _opened_call(event))
            case ToolArgumentsDelta(index, text, choice):
                call = {"index": index, "function": {"arguments": text}}
                return self._tool_call(choice, call)
            case ChoiceFinished(reason, choice):
                first = b"" if choice in self._begun else self._delta(choice, b'"content":""')
                return first + sse.data_frame(self.chunk([_choice(choice, {}, reason)]))
            case _:
                assert_never(event)

    def _delta(self, choice: int, field: bytes) -> bytes:
        """Return a chunk around one encoded field: only the field differs from the last one's."""
        opening = LATER if choice in self._begun else FIRST
        self._begun.add(choice)
        if choice not in self._frames:
            self._frames[choice] = self._frame_around(choice)
        start, end = self._frames[choice]
        return start + opening + field + b"}" + end

    def _frame_around(self, choice: int) -> tuple[bytes, bytes]:
        mark = "\x00delta"  # the last one in the frame is ours, whatever the model is called
        frame = sse.data_frame(self.chunk([{**_choice(choice, {}, None), "delta": mark}]))
        start, _, end = frame.rpartition(msgspec.json.encode(mark))
        return start, end

    def _tool_call(self, choice: int, call: dict[str, Any]) -> bytes:
        return self._delta(choice, b'"tool_calls":' + msgspec.json.encode([call]))

    def _text_with_logprobs(
        self, text: str, choice: int, logprobs: tuple[TokenLogprobs, ...]
    ) -> bytes:
        role = {} if choice in self._begun else {"role": "assistant"}
        self._begun.add(choice)
        shown = _choice(choice, {**role, "content": text}, None)
        return sse.data_frame(self.chunk([{**shown, "logprobs": _logprobs_body(logprobs)}]))


@dataclass(slots=True)
class _Message:
    """What a choice has said so far."""

    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[tuple[ToolCallStarted, list[str]]] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None

    def body(self) -> dict[str, Any]:
        """Return OpenAI's message; a message of calls alone has null for content."""
        text = "".join(self.texts)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text if text or not self.calls else None,
            "refusal": None,
        }
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if self.calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": "".join(arguments)},
                }
                for call, arguments in self.calls
            ]
        return message


class ChatCollector:
    """Feed events; with the last one comes the body of the answer."""

    def __init__(self, head: ResponseHead) -> None:
        self._head = head
        self._messages: dict[int, _Message] = {}

    def feed(self, event: ChatEvent) -> bytes | None:
        match event:
            case TextDelta(text, choice, logprobs):
                self._message(choice).texts.append(text)
                self._message(choice).logprobs.extend(logprobs)
            case ReasoningDelta(text, choice):
                self._message(choice).reasoning.append(text)
            case ToolCallStarted():
                self._message(event.choice).calls.append((event, []))
            case ToolArgumentsDelta(index, text, choice):
                self._message(choice).calls[index][1].append(text)
            case ChoiceFinished(reason, choice):
                self._message(choice).finish_reason = reason
            case Finished():
                return self._body(event)
            case Waited() | PromptRead() | Tokens():
                pass  # none of them shows in an answer that comes at once
            case _:
                assert_never(event)
        return None

    def _message(self, choice: int) -> _Message:
        return self._messages.setdefault(choice, _Message())

    def _body(self, finished: Finished) -> bytes:
        choices = [
            {
                "index": index,
                "message": message.body(),
                "logprobs": _logprobs_body(message.logprobs) if message.logprobs else None,
                "finish_reason": message.finish_reason,
            }
            for index, message in sorted(self._messages.items())
        ]
        return msgspec.json.encode(
            {
                "id": self._head.id,
                "object": "chat.completion",
                "created": self._head.created,
                "model": self._head.model,
                "choices": choices,
                "usage": usage_body(finished.usage),
            }
        )


def _choice(index: int, delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _opened_call(event: ToolCallStarted) -> dict[str, Any]:
    return {
        "index": event.index,
        "id": event.id,
        "type": "function",
        "function": {"name": event.name, "arguments": ""},
    }


def _logprobs_body(logprobs: tuple[TokenLogprobs, ...] | list[TokenLogprobs]) -> dict[str, Any]:
    content = [
        {**_chance(each.chosen), "top_logprobs": [_chance(other) for other in each.top]}
        for each in logprobs
    ]
    return {"content": content, "refusal": None}


def _chance(chance: TokenChance) -> dict[str, Any]:
    return {"token": chance.text, "logprob": chance.logprob, "bytes": list(chance.utf8)}
