"""Text completions as OpenAI's answers: a stream of chunks, or one body.

Nothing is read into the text: it has no reasoning and no calls. Offsets of logprobs count from the
beginning of the completion's text; a token that is no whole character is shown by its bytes, as
OpenAI has it. It is sans-IO and knows neither tokens nor clocks.
"""

from collections.abc import Sequence
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

OBJECT = "text_completion"


class CompletionStreamEncoder(StreamEncoder):
    """The state is where in its completion each next token begins."""

    object_name = OBJECT

    def __init__(self, head: ResponseHead, framing: Framing) -> None:
        super().__init__(head, framing)
        self._offsets: dict[int, int] = {}

    def encode(self, event: ChoiceEvent) -> bytes:
        match event:
            case TextDelta(text, choice, logprobs):
                return self._text(text, choice, logprobs)
            case ChoiceFinished(reason, choice):
                return self._frame(_choice(choice, "", None, reason))
            case ReasoningDelta() | ToolCallStarted() | ToolArgumentsDelta():
                raise AssertionError("a text completion is not read for reasoning or calls")
            case _:
                assert_never(event)

    def _text(self, text: str, choice: int, logprobs: Sequence[TokenLogprobs]) -> bytes:
        if not logprobs:
            return self._frame(_choice(choice, text, None, None))
        offset = self._offsets.get(choice, 0)
        self._offsets[choice] = offset + sum(each.num_characters for each in logprobs)
        return self._frame(_choice(choice, text, _logprobs_body(logprobs, offset), None))

    def _frame(self, choice: dict[str, Any]) -> bytes:
        return sse.data_frame(self.chunk([choice]))


@dataclass(slots=True)
class _Completion:
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None


class CompletionCollector:
    """Feed events; with the last one comes the body of the answer."""

    def __init__(self, head: ResponseHead) -> None:
        self._head = head
        self._completions: dict[int, _Completion] = {}

    def feed(self, event: ChatEvent) -> bytes | None:
        match event:
            case TextDelta(text, choice, logprobs):
                self._completion(choice).texts.append(text)
                self._completion(choice).logprobs.extend(logprobs)
            case ChoiceFinished(reason, choice):
                self._completion(choice).finish_reason = reason
            case Finished():
                return self._body(event)
            case Waited() | PromptRead() | Tokens():
                pass  # none of them shows in an answer that comes at once
            case ReasoningDelta() | ToolCallStarted() | ToolArgumentsDelta():
                raise AssertionError("a text completion is not read for reasoning or calls")
            case _:
                assert_never(event)
        return None

    def _completion(self, choice: int) -> _Completion:
        return self._completions.setdefault(choice, _Completion())

    def _body(self, finished: Finished) -> bytes:
        choices = [
            _choice(
                index,
                "".join(each.texts),
                _logprobs_body(each.logprobs, 0) if each.logprobs else None,
                each.finish_reason,
            )
            for index, each in sorted(self._completions.items())
        ]
        return msgspec.json.encode(
            {
                "id": self._head.id,
                "object": OBJECT,
                "created": self._head.created,
                "model": self._head.model,
                "choices": choices,
                "usage": usage_body(finished.usage),
            }
        )


def _choice(
    index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def _logprobs_body(logprobs: Sequence[TokenLogprobs], offset: int) -> dict[str, Any]:
    offsets = []
    for each in logprobs:
        offsets.append(offset)
        offset += each.num_characters
    return {
        "tokens": [_token(each.chosen) for each in logprobs],
        "token_logprobs": [each.chosen.logprob for each in logprobs],
        "top_logprobs": [{_token(top): top.logprob for top in each.top} for each in logprobs],
        "text_offset": offsets,
    }


def _token(chance: TokenChance) -> str:
    """Return the text that names a token; parts of different characters differ."""
    try:
        return chance.utf8.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in chance.utf8)
