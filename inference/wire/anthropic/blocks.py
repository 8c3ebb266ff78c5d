"""The content of Anthropic's messages: blocks, each with the shape its `type` demands.

Only shapes: what becomes of a block is not known here. Fields that nobody reads, cache_control
among them, are left out and so ignored; of a block that speaks of a provider's own tools all of it.
"""

from typing import Annotated

import msgspec

MAX_PARTS = 10_000
"""Of one document or one tool's result."""


class _Typed(msgspec.Struct, tag_field="type"):
    """Base of what says in `type` what it is."""


class Base64Source(_Typed, tag="base64"):
    media_type: str
    data: str


class UrlSource(_Typed, tag="url"):
    url: str


class FileSource(_Typed, tag="file"):
    file_id: str


class TextSource(_Typed, tag="text"):
    data: str


class Text(_Typed, tag="text"):
    text: str


class Image(_Typed, tag="image"):
    source: Base64Source | UrlSource | FileSource


class ContentSource(_Typed, tag="content"):
    content: str | Annotated[list[Text | Image], msgspec.Meta(max_length=MAX_PARTS)]


class Document(_Typed, tag="document"):
    source: TextSource | ContentSource | Base64Source | UrlSource | FileSource
    title: str | None = None
    context: str | None = None


class SearchResult(_Typed, tag="search_result"):
    """What a client's own search found."""

    source: str
    title: str
    content: list[Text]


class ToolReference(_Typed, tag="tool_reference"):
    """A tool that a client's tool search found; it is among the request's tools."""

    tool_name: str


class Thinking(_Typed, tag="thinking"):
    """Any signature will do: it may have been another provider's."""

    thinking: str


class RedactedThinking(_Typed, tag="redacted_thinking"):
    pass


class ToolUse(_Typed, tag="tool_use"):
    id: str
    name: str
    input: msgspec.Raw


class Compaction(_Typed, tag="compaction"):
    """What a provider made of the conversation so far; None where it failed."""

    content: str | None = None


class Elsewhere(_Typed):
    """What a provider's own machinery left in a conversation: no model here knows it."""


class ServerToolUse(Elsewhere, tag="server_tool_use"):
    pass


class McpToolUse(Elsewhere, tag="mcp_tool_use"):
    pass


class McpToolResult(Elsewhere, tag="mcp_tool_result"):
    pass


class McpToolListing(Elsewhere, tag="mcp_tool_listing"):
    pass


class WebSearchToolResult(Elsewhere, tag="web_search_tool_result"):
    pass


class WebFetchToolResult(Elsewhere, tag="web_fetch_tool_result"):
    pass


class CodeExecutionToolResult(Elsewhere, tag="code_execution_tool_result"):
    pass


class BashCodeExecutionToolResult(Elsewhere, tag="bash_code_execution_tool_result"):
    pass


class TextEditorToolResult(Elsewhere, tag="text_editor_code_execution_tool_result"):
    pass


class ToolSearchToolResult(Elsewhere, tag="tool_search_tool_result"):
    pass


class AdvisorToolResult(Elsewhere, tag="advisor_tool_result"):
    pass


class ContainerUpload(Elsewhere, tag="container_upload"):
    pass


class Fallback(Elsewhere, tag="fallback"):
    pass


class ToolAddition(Elsewhere, tag="tool_addition"):
    pass


class ToolRemoval(Elsewhere, tag="tool_removal"):
    pass


class BrowserState(Elsewhere, tag="browser_state"):
    pass


ElsewhereBlock = (
    ServerToolUse
    | McpToolUse
    | McpToolResult
    | McpToolListing
    | WebSearchToolResult
    | WebFetchToolResult
    | CodeExecutionToolResult
    | BashCodeExecutionToolResult
    | TextEditorToolResult
    | ToolSearchToolResult
    | AdvisorToolResult
    | ContainerUpload
    | Fallback
    | ToolAddition
    | ToolRemoval
    | BrowserState
)
Shown = Text | Image | Document | SearchResult | ToolReference | ElsewhereBlock
"""What can be shown to a model, by a user or by a tool."""


class ToolResult(_Typed, tag="tool_result"):
    tool_use_id: str
    content: str | Annotated[list[Shown], msgspec.Meta(max_length=MAX_PARTS)] | None = None
    is_error: bool | None = None


AssistantBlock = Text | Thinking | RedactedThinking | ToolUse | Compaction | ElsewhereBlock


class _Message(msgspec.Struct, tag_field="role"):
    """Base of messages: which blocks it may have depends on who speaks."""


class UserMessage(_Message, tag="user"):
    content: str | list[Shown | ToolResult]


class AssistantMessage(_Message, tag="assistant"):
    content: str | list[AssistantBlock]


SystemContent = str | list[Text | ElsewhereBlock]


class SystemMessage(_Message, tag="system"):
    content: SystemContent


Message = UserMessage | AssistantMessage | SystemMessage
