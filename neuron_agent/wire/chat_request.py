"""An OpenAI chat request as a neuron takes it: bytes in, ChatRequest out, or a clear refusal.

Strict about the shapes the neuron relies on; what it does not know is ignored, and what it knows
but does not do yet is refused by name, never silently dropped. It knows no tokens, no models and
no HTTP.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from neuron_agent.errors import BadRequest, Unprocessable
from neuron_agent.text.chat_template import RESERVED_ARGUMENTS
from neuron_agent.wire.json_body import Body, check_range, decode, parse_object

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 512
MAX_SEED = 2**63 - 1
MAX_TOKENS = 2**31 - 1


class Part(Body, frozen=True):
    type: str
    text: str | None = None


class Function(Body, frozen=True):
    name: str
    arguments: str | None = None


class ToolCall(Body, frozen=True, omit_defaults=False):
    function: Function
    id: str | None = None
    type: str = "function"


class Message(Body, frozen=True):
    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None


class ToolFunction(Body, frozen=True):
    name: str


class Tool(Body, frozen=True):
    function: ToolFunction
    type: str = "function"


class StreamOptions(Body, frozen=True):
    include_usage: bool | None = None


class ResponseFormat(Body, frozen=True):
    type: str = "text"


class Conversation(Body, frozen=True):
    """What a template is rendered from; the common part of chat and tokenize requests."""

    model: str
    messages: list[Message]
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None


class ChatBody(Conversation, frozen=True):
    """The fields of a request that are looked at, with the types they must have."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    # Known, not done yet: refused unless they say what is done anyway.
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, Any] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    response_format: ResponseFormat | None = None
    stop_token_ids: list[int] | None = None
    functions: list[Any] | None = None
    function_call: Any = None


class RenderInput(msgspec.Struct, frozen=True):
    """Messages, tools and arguments as the template gets them."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    template_kwargs: dict[str, Any]
    body_bytes: int
    """Size of the body it came in: a bound of what it costs to render, whatever it is full of."""


class ChatRequest(msgspec.Struct, frozen=True):
    """A request that makes sense. None means: as the model has it."""

    model: str
    conversation: RenderInput
    is_streaming: bool
    includes_usage: bool
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    stops: tuple[str, ...]
    ignores_stop_tokens: bool


def parse_chat_request(data: bytes) -> ChatRequest:
    """Return the request in a body. Raises BadRequest, or Unprocessable for what no text is."""
    raw = parse_object(data)
    body = decode(raw, ChatBody)
    _refuse_unsupported(body)
    _check_ranges(body)
    options = body.stream_options
    return ChatRequest(
        model=body.model,
        conversation=render_input(body, raw, len(data)),
        is_streaming=bool(body.stream),
        includes_usage=bool(options and options.include_usage),
        max_tokens=_max_tokens(body),
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=None if body.top_k is None else max(body.top_k, 0),
        seed=None if body.seed is None else body.seed & MAX_SEED,
        stops=_stops(body.stop),
        ignores_stop_tokens=bool(body.ignore_eos),
    )


def render_input(body: Conversation, raw: Mapping[str, Any], body_bytes: int) -> RenderInput:
    """Return what the template is given. Tools go as they came: templates show every field."""
    if not body.messages:
        raise BadRequest("messages is empty", param="messages")
    messages = [_message(message, index) for index, message in enumerate(body.messages)]
    extra = dict(body.chat_template_kwargs or {})
    taken = sorted(RESERVED_ARGUMENTS & extra.keys())
    if taken:
        raise BadRequest(
            f"chat_template_kwargs cannot set {taken[0]!r}", param="chat_template_kwargs"
        )
    if body.reasoning_effort is not None:
        extra.setdefault("reasoning_effort", body.reasoning_effort)
    tools = [] if _wants_no_tools(body) else list(raw["tools"])
    return RenderInput(messages, tools, extra, body_bytes)


def _wants_no_tools(body: Conversation) -> bool:
    """Whether to render no tools; a choice that would have to be enforced is refused."""
    if body.tool_choice in (None, "auto"):
        return not body.tools
    if body.tool_choice == "none":
        return True
    if isinstance(body.tool_choice, dict) or body.tool_choice == "required":
        raise unsupported("tool_choice")
    raise BadRequest("tool_choice must be none, auto, required or a tool", param="tool_choice")


def _message(message: Message, index: int) -> dict[str, Any]:
    where = f"messages[{index}]"
    if message.role not in ROLES:
        known = ", ".join(sorted(ROLES))
        raise BadRequest(f"{where}.role must be one of {known}", param=f"{where}.role")
    if message.content is None and message.role != "assistant":
        raise BadRequest(f"{where}.content is missing", param=f"{where}.content")
    prepared: dict[str, Any] = msgspec.to_builtins(message)
    if isinstance(message.content, list):
        prepared["content"] = _join_parts(message.content, where)
    return prepared


def _join_parts(parts: list[Part], where: str) -> str:
    """Return the text of content parts, nothing added between them."""
    texts = []
    for index, part in enumerate(parts):
        param = f"{where}.content[{index}]"
        if part.type not in ("text", "refusal"):
            raise Unprocessable(
                f"{param}: this model takes text, not {part.type!r}", code="wrong_modality"
            )
        if part.text is None:
            raise BadRequest(f"{param}.text is missing", param=f"{param}.text")
        texts.append(part.text)
    return "".join(texts)


def _max_tokens(body: ChatBody) -> int | None:
    newer = body.max_completion_tokens
    return newer if newer is not None else body.max_tokens


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOPS:
        raise BadRequest(f"stop takes at most {MAX_STOPS} strings", param="stop")
    if any(not text or len(text) > MAX_STOP_CHARACTERS for text in stops):
        raise BadRequest(
            f"each stop string has 1 to {MAX_STOP_CHARACTERS} characters", param="stop"
        )
    return stops


def _check_ranges(body: ChatBody) -> None:
    check_range("max_tokens", body.max_tokens, 1, MAX_TOKENS)
    check_range("max_completion_tokens", body.max_completion_tokens, 1, MAX_TOKENS)
    check_range("temperature", body.temperature, 0, 2)
    check_range("top_p", body.top_p, 0, 1)
    check_range("top_k", body.top_k, -1, MAX_TOKENS)  # -1 is how others write "off"
    check_range("seed", body.seed, -MAX_SEED - 1, MAX_SEED)


def _refuse_unsupported(body: ChatBody) -> None:
    """Refuse what would change the answer and is not done; its neutral value is welcome."""
    asked = {
        "n": body.n not in (None, 1),
        "logprobs": bool(body.logprobs),
        "top_logprobs": bool(body.top_logprobs),
        "logit_bias": bool(body.logit_bias),
        "presence_penalty": bool(body.presence_penalty),
        "frequency_penalty": bool(body.frequency_penalty),
        "repetition_penalty": body.repetition_penalty not in (None, 1),
        "min_p": bool(body.min_p),
        "min_tokens": bool(body.min_tokens),
        "response_format": body.response_format is not None and body.response_format.type != "text",
        "stop_token_ids": bool(body.stop_token_ids),
        "functions": bool(body.functions),
        "function_call": body.function_call not in (None, "none", "auto"),
    }
    for param, is_asked in asked.items():
        if is_asked:
            raise unsupported(param)


def unsupported(param: str) -> BadRequest:
    return BadRequest(
        f"{param} is not supported by this neuron yet", param=param, code="unsupported_parameter"
    )
