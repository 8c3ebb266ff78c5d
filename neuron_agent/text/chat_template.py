"""A conversation to the text a model was trained on, by its own chat template.

Templates are programs from the hub: they run in a sandbox on a budget, and whatever they raise
fails the one request. Nothing is added to a conversation or taken from it: a template that cannot
show the tools is an error, not a shorter prompt. Where it refuses a conversation as it is, or skips
instructions in its midst, it gets it in another form (see system_messages). It knows no tokens and
no HTTP.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from jinja2.exceptions import TemplateError

from neuron_agent.errors import Unprocessable
from neuron_agent.protocol import ErrorCode
from neuron_agent.text.sandbox.budget import TooMuch, budgeted
from neuron_agent.text.sandbox.environment import compile_template, names_in
from neuron_agent.text.system_messages import forms_of, shows_instructions

Messages = Sequence[Mapping[str, Any]]

RESERVED_ARGUMENTS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversations",
        "documents",
        "messages",
        "return_assistant_tokens_mask",
        "tools",
    }
)
"""Names that `chat_template_kwargs` of a request must not take: they are said in other ways."""


REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
"""What templates call the reasoning of a message; the first is what most say."""

WANTS_SHORT_IDS = re.compile(r"\blength\s*!=\s*9\b")
"""How Mistral's templates refuse a tool call's id that is not nine letters and digits."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The source of a template, the special tokens it may name (`bos_token`, ...), and a clock:
    some templates write the date into the prompt."""

    source: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    now: Callable[[], datetime] = datetime.now

    @property
    def takes_tools(self) -> bool:
        return "tools" in names_in(self.source)  # a template may also speak of tools

    def render(
        self,
        messages: Messages,
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt, open for the assistant's turn. Raises Unprocessable."""
        if tools and not self.takes_tools:
            raise _failed("the model's chat template cannot take tools")
        try:
            return self._render(messages, tools, template_kwargs or {})
        except TooMuch as error:
            raise _failed(f"the model's chat template is stopped: {error}") from None
        except RecursionError:
            raise _failed("the conversation is nested too deeply for the template") from None
        except Exception as error:  # a template may raise anything; it is this request's failure
            raise _failed(f"the model's chat template failed: {_first_line(error)}") from error

    def _render(
        self, messages: Messages, tools: Sequence[Mapping[str, Any]], extra: Mapping[str, Any]
    ) -> str:
        prepared = [self._prepare(message) for message in messages]
        if WANTS_SHORT_IDS.search(self.source):
            prepared = [_with_short_ids(message) for message in prepared]
        with budgeted(self.now):
            return self._render_some_form(prepared, tools, extra)

    def _render_some_form(
        self, messages: Messages, tools: Sequence[Mapping[str, Any]], extra: Mapping[str, Any]
    ) -> str:
        """Return the first form that shows all instructions, else the first one it takes at all."""
        refusals: list[TemplateError] = []
        prompts: list[str] = []
        for form in forms_of(messages):
            try:
                prompt = self._render_form(form, tools, extra)
            except TooMuch:
                raise
            except TemplateError as refusal:
                refusals.append(refusal)
                continue
            if shows_instructions(prompt, messages):
                return prompt
            prompts.append(prompt)
        if not prompts:
            raise refusals[0]
        return prompts[0]

    def _render_form(
        self, messages: Messages, tools: Sequence[Mapping[str, Any]], extra: Mapping[str, Any]
    ) -> str:
        try:
            return self._run([*map(_with_objects, messages)], tools, extra)
        except TypeError:  # a few templates (DeepSeek's) add the arguments to their text
            if not any("tool_calls" in message for message in messages):
                raise
            return self._run(messages, tools, extra)

    def _run(
        self, messages: Messages, tools: Sequence[Mapping[str, Any]], extra: Mapping[str, Any]
    ) -> str:
        return compile_template(self.source).render(
            messages=messages,
            tools=[dict(tool) for tool in tools] or None,
            documents=None,
            add_generation_prompt=True,
            **{**self.special_tokens, **extra},
        )

    def _prepare(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return a message in the form templates expect; absent and null are the same to them."""
        prepared = {key: value for key, value in message.items() if value is not None}
        if prepared.get("role") == "developer" and "developer" not in self.source:
            prepared["role"] = "system"  # the same thing under the name this template knows
        if prepared.get("role") == "assistant":
            prepared.setdefault("content", "")
        reasoning = next((prepared[name] for name in REASONING_NAMES if name in prepared), None)
        if reasoning is not None:
            prepared = {"thinking": reasoning, **prepared, "reasoning_content": reasoning}
        return prepared


def import_renderer() -> None:
    """Have what renders templates imported and at hand."""
    compile_template("")


def _with_objects(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a message with its calls' arguments as objects, as most templates want them."""
    if not message.get("tool_calls"):
        return message
    return {**message, "tool_calls": [_parse_arguments(call) for call in message["tool_calls"]]}


def _with_short_ids(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message with ids of nine characters; a call and its result still have the same."""
    shown = dict(message)
    if "tool_call_id" in shown:
        shown["tool_call_id"] = _short_id(shown["tool_call_id"])
    if shown.get("tool_calls"):
        shown["tool_calls"] = [
            {**call, "id": _short_id(call["id"])} if "id" in call else call
            for call in shown["tool_calls"]
        ]
    return shown


def _short_id(call_id: Any) -> str:
    text = str(call_id)
    is_short = len(text) == 9 and text.isalnum()
    return text if is_short else hashlib.sha256(text.encode(errors="replace")).hexdigest()[:9]


def _parse_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool call with its arguments as an object: templates encode them their own way."""
    function = dict(call.get("function") or {})
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except (TypeError, ValueError):
        return {**call, "function": function}  # not JSON: the template gets the text as it is
    if isinstance(arguments, dict):
        function["arguments"] = arguments
    return {**call, "function": function}


def _failed(message: str) -> Unprocessable:
    return Unprocessable(message, code=ErrorCode.TEMPLATE_RENDER_FAILED)


def _first_line(error: Exception) -> str:
    """Return a template's complaint, short; it is the template author's text, not the prompt's."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:200]
