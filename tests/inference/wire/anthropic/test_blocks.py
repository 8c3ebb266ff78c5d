"""Every kind of block that the anthropic SDK can send is known, by one role or the other."""

from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from anthropic.types import ContentBlockParam
from anthropic.types.beta import BetaContentBlockParam

from inference.wire.anthropic.blocks import (
    AssistantBlock,
    Message,
    Shown,
    ToolResult,
    ToolUse,
    UserMessage,
)


def tags_of(union: Any) -> set[str]:
    return {block.__struct_config__.tag for block in get_args(union)}


def types_of(param: Any) -> set[str]:
    hint = get_type_hints(param)["type"] if isinstance(param, type) else None
    return {value for value in _literals(hint) if isinstance(value, str)}


def _literals(hint: Any) -> list[Any]:
    inner = get_args(hint)
    return [found for part in inner for found in _literals(part)] if inner else [hint]


@pytest.mark.parametrize("union", [ContentBlockParam, BetaContentBlockParam])
def test_each_block_of_the_sdk_is_known(union: Any) -> None:
    known = tags_of(AssistantBlock) | tags_of(Shown) | {"tool_result"}
    sent = {type_ for param in get_args(union) for type_ in types_of(param)}
    assert "text" in sent
    assert sent <= known


def test_who_speaks_decides_which_blocks_there_may_be() -> None:
    assert not {"tool_use", "thinking"} & tags_of(Shown)
    assert not {"tool_result", "image"} & tags_of(AssistantBlock)


def test_the_type_may_come_after_the_rest() -> None:
    body = b'[{"content":[{"tool_use_id":"x","type":"tool_result"}],"role":"user"}]'
    [message] = msgspec.json.decode(body, type=list[Message])
    assert message == UserMessage([ToolResult("x")])


def test_an_input_is_kept_as_it_was_written() -> None:
    body = b'{"type":"tool_use","id":"x","name":"f","input":{"a" : 1.0}}'
    assert bytes(msgspec.json.decode(body, type=ToolUse).input) == b'{"a" : 1.0}'
