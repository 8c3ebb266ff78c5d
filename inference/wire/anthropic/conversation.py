"""Anthropic's system prompt and messages as OpenAI's messages, nothing said lost or reordered.

Blocks of text that follow each other become one text: a line each of what was put together from
pieces, seamless of what a model once said. It knows shapes, not what a model can take.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, assert_never

from inference.wire.anthropic.blocks import (
    AssistantBlock,
    AssistantMessage,
    Base64Source,
    Compaction,
    ContentSource,
    Document,
    Elsewhere,
    FileSource,
    Image,
    Message,
    RedactedThinking,
    SearchResult,
    Shown,
    SystemContent,
    SystemMessage,
    Text,
    TextSource,
    Thinking,
    ToolReference,
    ToolResult,
    ToolUse,
    UrlSource,
    UserMessage,
)
from inference.wire.anthropic.tools import swapped_id
from inference.wire.anthropic.wording import invalid

OpenAIMessage = dict[str, Any]
_Block = TypeVar("_Block")
Part = str | dict[str, Any]
"""A piece of content: a text, or a part of OpenAI's that is none."""

_BILLING_LINE = "x-anthropic-billing-header:"
"""How a line for an account's books begins. It changes with each request and stands before all
else: with it no prompt would ever be found in a cache."""


def translated(system: SystemContent | None, messages: Sequence[Message]) -> list[OpenAIMessage]:
    """Return OpenAI's messages. Raises InvalidRequest."""
    conversation: list[OpenAIMessage] = []
    if system and (content := _system_text(system)):
        conversation.append({"role": "system", "content": content})
    for index, message in enumerate(messages):
        conversation += _translated_message(message, f"messages.{index}.content")
    return conversation


def _translated_message(message: Message, where: str) -> list[OpenAIMessage]:
    match message:
        case UserMessage(content):
            return list(_user_messages(_as_blocks(content), where))
        case AssistantMessage(content):
            return [_assistant_message(_as_blocks(content), where)]
        case SystemMessage(content):
            return [{"role": "system", "content": _system_text(content)}]
        case _:
            assert_never(message)


def _as_blocks(content: str | list[_Block]) -> Sequence[_Block | Text]:
    return [Text(content)] if isinstance(content, str) else content


def _system_text(content: SystemContent) -> str:
    texts = (block.text for block in _as_blocks(content) if isinstance(block, Text))
    return "\n".join(filter(None, map(_without_billing, texts)))


def _without_billing(text: str) -> str:
    return text.partition("\n")[2] if text.startswith(_BILLING_LINE) else text


def _user_messages(blocks: Sequence[Shown | ToolResult], where: str) -> Iterator[OpenAIMessage]:
    """Yield a message for each tool's result and one for all that stands between two of them."""
    parts: list[Part] = []
    for index, block in enumerate(blocks):
        place = f"{where}.{index}"
        if not isinstance(block, ToolResult):
            parts += _parts(block, place)
            continue
        if any(parts):
            yield {"role": "user", "content": _content(parts)}
        parts = []
        yield _tool_message(block, place)
    if any(parts) or not any(isinstance(block, ToolResult) for block in blocks):
        yield {"role": "user", "content": _content(parts)}


def _tool_message(result: ToolResult, where: str) -> OpenAIMessage:
    parts: list[Part] = []
    for index, block in enumerate(_as_blocks(result.content or "")):
        parts += _parts(block, f"{where}.content.{index}")
    if result.is_error:
        parts = _as_error(parts)
    return {
        "role": "tool",
        "tool_call_id": swapped_id(result.tool_use_id),
        "content": _content(parts),
    }


def _as_error(parts: list[Part]) -> list[Part]:
    """OpenAI's tool messages have no mark of failure: the text says it, where it does not yet."""
    text = "".join(part for part in parts if isinstance(part, str))
    return parts if "error" in text[:40].lower() else ["Error:", *parts]


def _assistant_message(blocks: Sequence[AssistantBlock], where: str) -> OpenAIMessage:
    texts, thoughts, calls = [], [], []
    for index, block in enumerate(blocks):
        match block:
            case Text(text):
                texts.append(text)
            case Compaction(content):
                texts.append(content or "")
            case Thinking(thinking):
                thoughts.append(thinking)
            case ToolUse():
                calls.append(_tool_call(block, f"{where}.{index}"))
            case RedactedThinking() | Elsewhere():
                pass
            case _:
                assert_never(block)
    message: OpenAIMessage = {"role": "assistant", "content": "".join(texts)}
    if any(thoughts):
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _tool_call(use: ToolUse, where: str) -> dict[str, Any]:
    arguments = bytes(use.input)
    if not arguments.startswith(b"{"):
        raise invalid(f"{where}.input", "Expected `object`")
    function = {"name": use.name, "arguments": arguments.decode()}
    return {"id": swapped_id(use.id), "type": "function", "function": function}


def _parts(block: Shown, where: str) -> Iterator[Part]:
    match block:
        case Text(text):
            yield text
        case Image():
            yield _image_part(block, where)
        case Document():
            yield from _document_parts(block, where)
        case SearchResult(source, title, content):
            yield f"{title} ({source})"
            yield from (text.text for text in content)
        case ToolReference(name):
            yield f"The tool {name} is available."
        case Elsewhere():
            pass
        case _:
            assert_never(block)


def _image_part(image: Image, where: str) -> Part:
    match image.source:
        case Base64Source(media_type, data):
            url = f"data:{media_type};base64,{data}"
        case UrlSource(url):
            pass
        case FileSource():
            raise _no_files(where)
        case _:
            assert_never(image.source)
    return {"type": "image_url", "image_url": {"url": url}}


def _document_parts(document: Document, where: str) -> Iterator[Part]:
    yield from filter(None, (document.title, document.context))
    match document.source:
        case TextSource(text):
            yield text
        case ContentSource(content):
            for index, block in enumerate(_as_blocks(content)):
                yield from _parts(block, f"{where}.source.content.{index}")
        case Base64Source(media_type, data):
            file = {"file_data": f"data:{media_type};base64,{data}"}
            yield {"type": "file", "file": file}
        case UrlSource():
            raise invalid(f"{where}.source", "Documents are not fetched from URLs; send the text")
        case FileSource():
            raise _no_files(where)
        case _:
            assert_never(document.source)


def _content(parts: Sequence[Part]) -> str | list[dict[str, Any]]:
    """Return content as one text if it is nothing but text."""
    if all(isinstance(part, str) for part in parts):
        return "\n".join(part for part in parts if isinstance(part, str) and part)
    return [
        {"type": "text", "text": part} if isinstance(part, str) else part for part in parts if part
    ]


def _no_files(where: str) -> Exception:
    return invalid(f"{where}.source", "No files are kept here; send the content itself")
