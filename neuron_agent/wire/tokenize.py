"""`POST /tokenize` and `/detokenize`: a prompt or a conversation to its token ids, and back.

A conversation is a chat request's body; what else such a request says is ignored. Where the model
may not be loaded, `source`, `revision` and `quant` say where it is, as for a load. It knows no
tokenizer.
"""

import msgspec

from neuron_agent.errors import BadRequest
from neuron_agent.protocol import LoadRequest
from neuron_agent.wire.conversation import Conversation, RenderInput, render_input
from neuron_agent.wire.json_body import Body, check_range, decode, parse_object
from neuron_agent.wire.sampling_fields import MAX_TOKEN_ID


class _PromptBody(Body, frozen=True):
    prompt: str
    add_special_tokens: bool = True


class _ModelBody(Body, frozen=True):
    model: str
    source: str | None = None
    revision: str | None = None
    quant: str | None = None
    return_tokens: bool | None = None


class _TokensBody(Body, frozen=True):
    model: str
    tokens: list[int]


class TokenizeRequest(msgspec.Struct, frozen=True):
    """Exactly one of `prompt` and `conversation` is there."""

    model: LoadRequest
    """What a load of it would be asked with."""
    returns_tokens: bool = True
    prompt: str | None = None
    adds_special_tokens: bool = False
    conversation: RenderInput | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True):
    model: str
    token_ids: tuple[int, ...]


def parse_tokenize_request(data: bytes) -> TokenizeRequest:
    """Return the request in a body. Raises BadRequest."""
    raw = parse_object(data)
    named = decode(raw, _ModelBody)
    model = LoadRequest(named.model, named.source, named.revision, quant=named.quant)
    returns_tokens = named.return_tokens is not False
    if "messages" in raw:
        conversation = render_input(decode(raw, Conversation), raw)
        return TokenizeRequest(model, returns_tokens, conversation=conversation)
    if "prompt" not in raw:
        raise BadRequest("prompt or messages must be there", param="prompt")
    prompt = decode(raw, _PromptBody)
    return TokenizeRequest(model, returns_tokens, prompt.prompt, prompt.add_special_tokens)


def parse_detokenize_request(data: bytes) -> DetokenizeRequest:
    """Return the request in a body. Raises BadRequest."""
    body = decode(parse_object(data), _TokensBody)
    for token_id in body.tokens:
        check_range("tokens", token_id, 0, MAX_TOKEN_ID)
    return DetokenizeRequest(body.model, tuple(body.tokens))


def encode_tokens(
    token_ids: list[int], max_model_len: int | None, *, returns_tokens: bool = True
) -> bytes:
    """Return the answer; who only counts is spared the ids of a long conversation."""
    tokens = {"tokens": token_ids} if returns_tokens else {}
    return msgspec.json.encode({"count": len(token_ids), "max_model_len": max_model_len, **tokens})


def encode_prompt(prompt: str) -> bytes:
    return msgspec.json.encode({"prompt": prompt})
