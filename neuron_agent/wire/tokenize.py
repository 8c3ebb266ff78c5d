"""`POST /tokenize` and `/detokenize`: a prompt or a conversation to its token ids, and back.

It knows no tokenizer.
"""

import msgspec

from neuron_agent.errors import BadRequest
from neuron_agent.wire.conversation import Conversation, RenderInput, render_input
from neuron_agent.wire.json_body import Body, check_range, decode, parse_object
from neuron_agent.wire.sampling_fields import MAX_TOKEN_ID


class _PromptBody(Body, frozen=True):
    model: str
    prompt: str
    add_special_tokens: bool = True


class _TokensBody(Body, frozen=True):
    model: str
    tokens: list[int]


class TokenizeRequest(msgspec.Struct, frozen=True):
    """Exactly one of `prompt` and `conversation` is there."""

    model: str
    prompt: str | None = None
    adds_special_tokens: bool = False
    conversation: RenderInput | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True):
    model: str
    token_ids: tuple[int, ...]


def parse_tokenize_request(data: bytes) -> TokenizeRequest:
    """Return the request in a body. Raises BadRequest."""
    raw = parse_object(data)
    if "messages" in raw:
        body = decode(raw, Conversation)
        return TokenizeRequest(body.model, conversation=render_input(body, raw))
    if "prompt" not in raw:
        raise BadRequest("prompt or messages must be there", param="prompt")
    prompt = decode(raw, _PromptBody)
    return TokenizeRequest(prompt.model, prompt.prompt, prompt.add_special_tokens)


def parse_detokenize_request(data: bytes) -> DetokenizeRequest:
    """Return the request in a body. Raises BadRequest."""
    body = decode(parse_object(data), _TokensBody)
    for token_id in body.tokens:
        check_range("tokens", token_id, 0, MAX_TOKEN_ID)
    return DetokenizeRequest(body.model, tuple(body.tokens))


def encode_tokens(token_ids: list[int], max_model_len: int | None) -> bytes:
    return msgspec.json.encode(
        {"count": len(token_ids), "max_model_len": max_model_len, "tokens": token_ids}
    )


def encode_prompt(prompt: str) -> bytes:
    return msgspec.json.encode({"prompt": prompt})
