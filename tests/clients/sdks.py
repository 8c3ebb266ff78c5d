"""The SDKs of OpenAI and Anthropic, for Python and for node, with three verbs each.

Those for Python validate every answer against their types; those for node have none at run time,
but put streams together themselves. They ask without a way to try again: a failure is seen.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import anthropic
import openai

from tests.clients.programs import node_script, run

FACT = "The harbour gate opens at seven."
TOOL_NAME = "look_up"
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"topic": {"type": "string"}},
    "required": ["topic"],
    "additionalProperties": False,
}
_FUNCTION: dict[str, Any] = {
    "name": TOOL_NAME,
    "description": "Look something up",
    "parameters": _SCHEMA,
}


@dataclass(frozen=True, slots=True)
class Errand:
    url: str
    model: str
    prompt: str
    home: Path
    outside: str


class Sdk(Protocol):
    @property
    def name(self) -> str: ...

    async def say(self, errand: Errand) -> list[str]:
        """Return the answer as it came at once, and as it came in a stream."""

    async def leave(self, errand: Errand) -> None:
        """Go after the first word of a stream."""

    async def use_tool(self, errand: Errand) -> str:
        """Let the model look up FACT; return how it ends."""


class ToolRunner(Protocol):
    @property
    def name(self) -> str: ...

    async def run_tools(self, errand: Errand) -> str:
        """The same by the SDK's own loop, which would leave the conversation to the server."""


class PythonChat:
    name = "python chat"

    async def say(self, errand: Errand) -> list[str]:
        asked = self._asked(errand)
        async with _openai(errand) as client:
            whole = await client.chat.completions.create(**asked)
            async with client.chat.completions.stream(**asked) as stream:
                streamed = await stream.get_final_completion()
        return [each.choices[0].message.content or "" for each in (whole, streamed)]

    async def leave(self, errand: Errand) -> None:
        async with (
            _openai(errand) as client,
            client.chat.completions.stream(**self._asked(errand)) as stream,
        ):
            async for event in stream:
                if event.type == "content.delta":
                    return

    async def use_tool(self, errand: Errand) -> str:
        asked = self._asked(errand)
        tools: list[Any] = [{"type": "function", "function": {**_FUNCTION, "strict": True}}]
        async with _openai(errand) as client:
            async with client.chat.completions.stream(**asked, tools=tools) as stream:
                message = (await stream.get_final_completion()).choices[0].message
            (call,) = message.tool_calls or []
            result = {"role": "tool", "tool_call_id": call.id, "content": FACT}
            asked["messages"] += [message.model_dump(exclude_none=True), result]
            last = await client.chat.completions.create(**asked, tools=tools)
        return last.choices[0].message.content or ""

    def _asked(self, errand: Errand) -> dict[str, Any]:
        return {"model": errand.model, "messages": [{"role": "user", "content": errand.prompt}]}


class PythonResponses:
    name = "python responses"

    async def say(self, errand: Errand) -> list[str]:
        asked = self._asked(errand)
        async with _openai(errand) as client:
            whole = await client.responses.create(**asked)
            async with client.responses.stream(**asked) as stream:
                streamed = await stream.get_final_response()
        return [whole.output_text, streamed.output_text]

    async def leave(self, errand: Errand) -> None:
        async with (
            _openai(errand) as client,
            client.responses.stream(**self._asked(errand)) as stream,
        ):
            async for event in stream:
                if event.type == "response.output_text.delta":
                    return

    async def use_tool(self, errand: Errand) -> str:
        asked = self._asked(errand)
        tools: list[Any] = [{"type": "function", **_FUNCTION, "strict": True}]
        async with _openai(errand) as client:
            async with client.responses.stream(**asked, tools=tools) as stream:
                first = await stream.get_final_response()
            asked["input"] += [item.model_dump(exclude_none=True) for item in first.output]
            (call,) = (item for item in first.output if item.type == "function_call")
            result = {"type": "function_call_output", "call_id": call.call_id, "output": FACT}
            asked["input"].append(result)
            last = await client.responses.create(**asked, tools=tools)
        return str(last.output_text)

    def _asked(self, errand: Errand) -> dict[str, Any]:
        question = {"role": "user", "content": errand.prompt}
        return {"model": errand.model, "input": [question], "store": False}


class PythonMessages:
    name = "python messages"

    async def say(self, errand: Errand) -> list[str]:
        asked = self._asked(errand)
        async with _anthropic(errand) as client:
            whole = await client.messages.create(**asked)
            async with client.messages.stream(**asked) as stream:
                streamed = await stream.get_final_message()
        return [_text_of(whole), _text_of(streamed)]

    async def leave(self, errand: Errand) -> None:
        async with (
            _anthropic(errand) as client,
            client.messages.stream(**self._asked(errand)) as stream,
        ):
            async for event in stream:
                if event.type == "content_block_delta":
                    return

    async def use_tool(self, errand: Errand) -> str:
        asked = self._asked(errand)
        described = {name: _FUNCTION[name] for name in ("name", "description")}
        tools: list[Any] = [{**described, "input_schema": _SCHEMA}]
        async with _anthropic(errand) as client:
            async with client.messages.stream(**asked, tools=tools) as stream:
                first = await stream.get_final_message()
            (use,) = (block for block in first.content if block.type == "tool_use")
            result = {"type": "tool_result", "tool_use_id": use.id, "content": FACT}
            asked["messages"].append({"role": "assistant", "content": first.content})
            asked["messages"].append({"role": "user", "content": [result]})
            last = await client.messages.create(**asked, tools=tools)
        return _text_of(last)

    async def run_tools(self, errand: Errand) -> str:
        @anthropic.beta_async_tool(name=TOOL_NAME, description="Look it up", input_schema=_SCHEMA)
        async def look_up(topic: str) -> str:
            return FACT

        async with _anthropic(errand) as client:
            runner = client.beta.messages.tool_runner(**self._asked(errand), tools=[look_up])
            last = await runner.until_done()
        return "".join(block.text for block in last.content if block.type == "text")

    def _asked(self, errand: Errand) -> dict[str, Any]:
        question = {"role": "user", "content": errand.prompt}
        return {"model": errand.model, "max_tokens": 1000, "messages": [question]}


@dataclass(frozen=True, slots=True)
class Node:
    """A script in `node/` that speaks through an SDK."""

    api: str

    @property
    def name(self) -> str:
        return f"node {self.api}"

    async def say(self, errand: Errand) -> list[str]:
        return list(await self._do("say", errand))

    async def leave(self, errand: Errand) -> None:
        await self._do("leave", errand)

    async def use_tool(self, errand: Errand) -> str:
        return str(await self._do("use_tool", errand))

    async def run_tools(self, errand: Errand) -> str:
        return str(await self._do("run_tools", errand))

    async def _do(self, verb: str, errand: Errand) -> Any:
        arguments = (verb, errand.url, errand.model, errand.prompt)
        call = node_script(f"{self.api}.mjs", *arguments, home=errand.home)
        return json.loads((await run(call, errand.outside)).output)


SDKS: tuple[Sdk, ...] = (
    PythonChat(),
    PythonResponses(),
    PythonMessages(),
    Node("chat"),
    Node("responses"),
    Node("messages"),
)

TOOL_RUNNERS: tuple[ToolRunner, ...] = (PythonMessages(), Node("messages"))


def _openai(errand: Errand) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{errand.url}/v1",
        api_key="none",
        max_retries=0,
        _strict_response_validation=True,
    )


def _anthropic(errand: Errand) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(
        base_url=errand.url, api_key="none", max_retries=0, _strict_response_validation=True
    )


def _text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")
