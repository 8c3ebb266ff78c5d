"""What the demo model's replies mean, read by regular expressions and nothing of the neuron's."""

import json
import re
from dataclasses import dataclass
from typing import Any

_THOUGHT = re.compile(r"<think>\n(.*?)\n</think>\n\n", re.DOTALL)
_CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Meaning:
    """A reply without its markup; calls as their names and decoded arguments."""

    thought: str
    said: str
    calls: tuple[tuple[str, Any], ...]


def meaning_of(reply: str) -> Meaning:
    """Return what a reply with markup means."""
    thought = _THOUGHT.match(reply)
    rest = reply[thought.end() :] if thought else reply
    calls = [json.loads(text) for text in _CALL.findall(rest)]
    return Meaning(
        thought=thought[1] if thought else "",
        said=_CALL.sub("", rest).strip() if calls else rest,
        calls=tuple((call["name"], call["arguments"]) for call in calls),
    )


def message_meaning(message: dict[str, Any]) -> Meaning:
    """Return what a message in OpenAI's shape means."""
    functions = [call["function"] for call in message.get("tool_calls") or []]
    return Meaning(
        thought=message.get("reasoning_content") or "",
        said=message["content"] or "",
        calls=tuple((each["name"], json.loads(each["arguments"])) for each in functions),
    )
