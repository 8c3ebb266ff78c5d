"""`POST /tokenize`: a prompt or a conversation to its token ids. It knows no tokenizer."""

from typing import Any

import msgspec

from neuron_agent.errors import BadRequest
from neuron_agent.wire.chat_request import Conversation, RenderInput, render_input
from neuron_agent.wire.json_body import Body, decode, parse_object


class _PromptBody(Body, frozen=True):
    model: str
    prompt: str
    add_special_tokens: bool = True


class TokenizeRequest(msgspec.Struct, frozen=True):
    """Exactly one of `prompt` and `conversation` is there."""

    model: str
    prompt: str | None = None
    adds_special_tokens: bool = False
    conversation: RenderInput | None = None


def parse_tokenize_request(data: bytes) -> TokenizeRequest:
    """Return the request in a body. Raises BadRequest."""
    raw = parse_object(data)
    if "messages" in raw:
        body = decode(raw, Conversation)
        return TokenizeRequest(body.model, conversation=render_input(body, raw, len(data)))
    if "prompt" not in raw:
        raise BadRequest("prompt or messages must be there", param="prompt")
    prompt = decode(raw, _PromptBody)
    return TokenizeRequest(prompt.model, prompt.prompt, prompt.add_special_tokens)


def encode_tokens(token_ids: list[int], max_model_len: int | None) -> bytes:
    answer: dict[str, Any] = {
        "count": len(token_ids),
        "max_model_len": max_model_len,
        "tokens": token_ids,
    }
    return msgspec.json.encode(answer)
