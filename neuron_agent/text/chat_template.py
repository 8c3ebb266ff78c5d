"""A conversation to the text a model was trained on, by its own chat template.

Templates are programs from the hub: they run in transformers' sandbox, and whatever they raise
fails the one request. Nothing is added to a conversation or taken from it: a template that cannot
show the tools is an error, not a shorter prompt. It knows no tokens and no HTTP.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neuron_agent.errors import Unprocessable
from neuron_agent.protocol import ErrorCode

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


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The source of a template and the special tokens it may name (`bos_token`, ...)."""

    source: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    @property
    def takes_tools(self) -> bool:
        return "tools" in self.source

    @property
    def takes_reasoning(self) -> bool:
        return "<think>" in self.source or "enable_thinking" in self.source

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
        except RecursionError:
            raise _failed("the conversation is nested too deeply for the template") from None
        except Exception as error:  # a template may raise anything; it is this request's failure
            raise _failed(f"the model's chat template failed: {_first_line(error)}") from error

    def _render(
        self, messages: Messages, tools: Sequence[Mapping[str, Any]], extra: Mapping[str, Any]
    ) -> str:
        rendered, _ = import_renderer()(
            conversations=[[self._prepare(message) for message in messages]],
            tools=[dict(tool) for tool in tools] or None,
            chat_template=self.source,
            add_generation_prompt=True,
            **{**self.special_tokens, **extra},
        )
        return str(rendered[0])

    def _prepare(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return a message in the form templates expect; absent and null are the same to them."""
        prepared = {key: value for key, value in message.items() if value is not None}
        if prepared.get("role") == "developer" and "developer" not in self.source:
            prepared["role"] = "system"  # the same thing under the name this template knows
        if prepared.get("tool_calls"):
            prepared["tool_calls"] = [_parse_arguments(call) for call in prepared["tool_calls"]]
        if prepared.get("role") == "assistant":
            prepared.setdefault("content", "")
        return prepared


def import_renderer() -> Any:
    """Return transformers' renderer. The first call takes a second: make it early, in a thread."""
    from transformers.utils.chat_template_utils import render_jinja_template

    return render_jinja_template


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
