"""What the device is to do for a request, and how its output is to be read.

Rendering, tokenising and building a grammar happen here, in threads: other streams do not wait for
them. It knows what OpenAI's parameters mean for the device; no places, no HTTP.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, assert_never

import msgspec

from neuron_agent.devices.channel import Sampling
from neuron_agent.errors import BadRequest
from neuron_agent.errors import Unprocessable as Unrenderable
from neuron_agent.model_state import ModelState
from neuron_agent.protocol import ErrorCode
from neuron_agent.sources.model_text import ModelText, SamplingDefaults
from neuron_agent.text import structure
from neuron_agent.wire.chat_request import AnswerForm, ChatRequest, JsonForm
from neuron_agent.wire.completion_request import CompletionRequest, Prompt
from neuron_agent.wire.conversation import ForcedCall, RenderInput
from neuron_agent.wire.sampling_fields import MAX_SEED, SamplingFields

THINKING_SWITCH = "enable_thinking"
"""The argument by which most templates of models that may think are told not to."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a chat's output is read: what is reasoning in it, and what a call."""

    starts_reasoning: bool
    tools: Sequence[Mapping[str, Any]] = ()
    allows_parallel_calls: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """A prompt and what to make of it, ready for the device. Without a reading all is text."""

    token_ids: list[int]
    max_tokens: int
    sampling: Sampling
    stop_ids: list[int] = field(default_factory=list)
    min_tokens: int = 0
    num_logprobs: int | None = None
    grammar: str | None = None
    stops: tuple[str, ...] = ()
    reading: Reading | None = None

    def sampling_of(self, choice: int) -> Sampling:
        """Return how the n-th choice of this prompt is sampled: each has a seed of its own."""
        seed = self.sampling.seed
        if seed is None or choice == 0:
            return self.sampling
        return msgspec.structs.replace(self.sampling, seed=(seed + choice) & MAX_SEED)


async def plan_chat(model: ModelState, chat: ChatRequest) -> Plan:
    """Return what the device is to do for a chat. Raises NeuronError."""
    text = _text_of(model)
    conversation = chat.conversation
    rendered, token_ids = await _render(text, conversation)
    starts_reasoning = text.format.opens_reasoning(rendered)
    plan = _plan(model, chat.sampling, token_ids, param="messages")
    grammar = None
    if chat.answer_form is not None:
        building = _Structure(text, rendered, chat)
        grammar = await asyncio.to_thread(building.grammar, chat.answer_form)
    return replace(
        plan,
        num_logprobs=chat.num_logprobs,
        grammar=grammar,
        reading=Reading(starts_reasoning, conversation.tools, chat.allows_parallel_calls),
    )


async def plan_completion(model: ModelState, request: CompletionRequest) -> list[Plan]:
    """Return what the device is to do for each prompt of a text completion. Raises NeuronError."""
    prompts = await tokenize_prompts(_text_of(model), request.prompts, param="prompt")
    return [
        replace(
            _plan(model, request.sampling, token_ids, param="prompt"),
            num_logprobs=request.num_logprobs,
        )
        for token_ids in prompts
    ]


async def tokenize_conversation(text: ModelText, conversation: RenderInput) -> list[int]:
    """Return a conversation's token ids as the model sees them. Raises NeuronError."""
    _, token_ids = await _render(text, conversation)
    return token_ids


async def tokenize_prompts(
    text: ModelText, prompts: Sequence[Prompt], param: str
) -> list[list[int]]:
    """Return the token ids of prompts, special tokens added to texts. Raises BadRequest."""
    encoded = await asyncio.to_thread(_encode_prompts, text, prompts)
    if not all(encoded):
        raise BadRequest(f"{param} has no tokens", param=param)
    return encoded


def check_length(model: ModelState, num_tokens: int, param: str) -> None:
    """Raise BadRequest if a prompt leaves no room for a token of the answer."""
    most = model.context_tokens - 1
    if num_tokens > most:
        model.reject(ErrorCode.CONTEXT_LENGTH_EXCEEDED)
        raise BadRequest(
            f"prompt is too long: {num_tokens} tokens > {most} maximum",
            param=param,
            code=ErrorCode.CONTEXT_LENGTH_EXCEEDED,
        )


def choose_sampling(asked: SamplingFields, defaults: SamplingDefaults) -> Sampling:
    """Return how to sample: the request's word, else the model's."""

    def chosen(value: float | None, default: float) -> float:
        return default if value is None else value

    return Sampling(
        temperature=chosen(asked.temperature, defaults.temperature),
        top_p=chosen(asked.top_p, defaults.top_p),
        top_k=defaults.top_k if asked.top_k is None else asked.top_k,
        min_p=chosen(asked.min_p, defaults.min_p),
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        repetition_penalty=chosen(asked.repetition_penalty, defaults.repetition_penalty),
        logit_bias=asked.logit_bias,
        seed=asked.seed,
    )


def _plan(model: ModelState, asked: SamplingFields, token_ids: list[int], param: str) -> Plan:
    """Return what prompts of any kind have in common."""
    check_length(model, len(token_ids), param)
    text = _text_of(model)
    remaining = model.context_tokens - len(token_ids)
    own_stops = () if asked.ignores_stop_tokens else text.stop_ids
    max_tokens = min(asked.max_tokens or remaining, remaining)
    return Plan(
        token_ids=token_ids,
        max_tokens=max_tokens,
        min_tokens=min(asked.min_tokens, max_tokens),
        stop_ids=sorted({*own_stops, *asked.stop_token_ids}),
        sampling=choose_sampling(asked, text.defaults),
        stops=asked.stops,
    )


def _text_of(model: ModelState) -> ModelText:
    assert model.text is not None  # a model that admits requests has one
    return model.text


async def _render(text: ModelText, conversation: RenderInput) -> tuple[str, list[int]]:
    # In a thread, however small: a model's template may take seconds over a single word.
    return await asyncio.to_thread(_render_and_encode, text, conversation)


def _render_and_encode(text: ModelText, conversation: RenderInput) -> tuple[str, list[int]]:
    if text.template is None:
        raise Unrenderable("the model has no chat template", code=ErrorCode.TEMPLATE_RENDER_FAILED)
    rendered = text.template.render(
        conversation.messages, conversation.tools, conversation.template_kwargs
    )
    token_ids = text.encode(rendered)
    if not token_ids:
        raise BadRequest("the prompt is empty", param="messages")
    return rendered, token_ids


def _encode_prompts(text: ModelText, prompts: Sequence[Prompt]) -> list[list[int]]:
    return [
        text.encode(prompt, add_special_tokens=True) if isinstance(prompt, str) else list(prompt)
        for prompt in prompts
    ]


@dataclass(frozen=True, slots=True)
class _Structure:
    """Builds the grammar of an answer, checked under limits; this may take milliseconds."""

    text: ModelText
    rendered: str
    chat: ChatRequest

    def grammar(self, form: AnswerForm) -> str:
        """Return the grammar for the device. Raises BadRequest that names the parameter."""
        output_format = self.text.format
        starts_reasoning = output_format.opens_reasoning(self.rendered)
        may_reason = starts_reasoning or self._may_reason()
        match form:
            case JsonForm(schema, is_strict):
                return _checked(
                    "response_format",
                    lambda: structure.json_schema_grammar(
                        schema,
                        output_format,
                        starts_reasoning,
                        is_strict=is_strict,
                        may_reason=may_reason,
                        tools=self.chat.conversation.tools,
                        parallel=self.chat.allows_parallel_calls,
                    ),
                )
            case ForcedCall(name):
                return _checked(
                    "tools",
                    lambda: structure.forced_call_grammar(
                        self.chat.conversation.tools,
                        name,
                        output_format,
                        starts_reasoning,
                        self.chat.allows_parallel_calls,
                        may_reason=may_reason,
                    ),
                )
            case _:
                assert_never(form)

    def _may_reason(self) -> bool:
        """Whether the model is expected to open its reasoning itself.

        Where the template has the usual switch, only if switching it off would change the prompt:
        a model let think out of its habit may not find back before its tokens are used up.
        """
        marks, template = self.text.format.reasoning, self.text.template
        if marks is None or self.text.format.closes_reasoning(self.rendered):
            return False
        if template is None or THINKING_SWITCH not in template.source:
            return True
        talk = self.chat.conversation
        unthinking = {**talk.template_kwargs, THINKING_SWITCH: False}
        return self.rendered != template.render(talk.messages, talk.tools, unthinking)


def _checked(param: str, build: Callable[[], str]) -> str:
    try:
        return build()
    except structure.InvalidStructure as error:
        raise BadRequest(f"{param}: {error}", param=param) from error
