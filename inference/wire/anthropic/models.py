"""The list of models as Anthropic pages it: a window of entries, and what stands at its edges.

It knows entries as they are given, in their order, and not where they come from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference.wire.anthropic.wording import invalid

DEFAULT_LIMIT = 20
MAX_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class ModelEntry:
    name: str
    """What a request calls it: an id, which may have slashes, or an alias."""
    display_name: str
    created_at: str
    """RFC 3339."""
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None


def model_body(entry: ModelEntry) -> dict[str, Any]:
    return {
        "type": "model",
        "id": entry.name,
        "display_name": entry.display_name,
        "created_at": entry.created_at,
        "lifecycle": "active",
        "max_input_tokens": entry.max_input_tokens,
        "max_tokens": entry.max_output_tokens,
    }


def model_list(entries: Sequence[ModelEntry], query: Mapping[str, str]) -> dict[str, Any]:
    """Return the page that a query asks for. Raises InvalidRequest."""
    limit = _limit(query.get("limit"))
    after, before = query.get("after_id"), query.get("before_id")
    if after and before:
        raise invalid("after_id", "Only one of after_id and before_id can be there")
    if before:
        found = entries[: _position(entries, "before_id", before)]
        page, has_more = found[-limit:], len(found) > limit
    else:
        found = entries[_position(entries, "after_id", after) + 1 :] if after else entries
        page, has_more = found[:limit], len(found) > limit
    return {
        "data": [model_body(entry) for entry in page],
        "has_more": has_more,
        "first_id": page[0].name if page else None,
        "last_id": page[-1].name if page else None,
    }


def _limit(given: str | None) -> int:
    if given is None:
        return DEFAULT_LIMIT
    is_number = given.isascii() and given.isdecimal() and len(given) <= 10
    if not is_number or not 1 <= int(given) <= MAX_LIMIT:
        raise invalid("limit", f"Expected a number from 1 to {MAX_LIMIT}")
    return int(given)


def _position(entries: Sequence[ModelEntry], param: str, name: str) -> int:
    for position, entry in enumerate(entries):
        if entry.name == name:
            return position
    raise invalid(param, "No such model")
