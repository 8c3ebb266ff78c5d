"""Requests that clients do not send, made of those they do: seeded, so that each can be made again.

Bodies are changed as values first (dropped, retyped, doubled, nested) and as bytes then.
"""

import gzip
import json
import random
from collections.abc import Callable
from typing import Any

from tests.inference.raw_http import Sent
from tests.inference.world import MODEL

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
COUNT_TOKENS = f"{MESSAGES}/count_tokens"
ANTHROPIC = (MESSAGES, COUNT_TOKENS)

_SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
_FUNCTION = {"name": "f", "description": "Does it.", "parameters": _SCHEMA}
_CHAT_CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_FORMAT = {"type": "json_schema", "name": "n", "schema": _SCHEMA, "strict": True}

VALID: dict[str, dict[str, Any]] = {
    CHAT: {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": None, "tool_calls": [_CHAT_CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "ok"},
        ],
        "tools": [{"type": "function", "function": _FUNCTION}],
        "tool_choice": "auto",
        "max_tokens": 4,
        "temperature": 0.5,
        "stop": ["END"],
        "stream_options": {"include_usage": True},
        "logit_bias": {"1": 2},
    },
    COMPLETIONS: {"model": MODEL, "prompt": ["a", "b"], "max_tokens": 4, "n": 1, "seed": 3},
    EMBEDDINGS: {"model": MODEL, "input": ["a", [1, 2]], "encoding_format": "base64"},
    RESPONSES: {
        "model": MODEL,
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {
                "type": "reasoning",
                "summary": [{"type": "summary_text", "text": "hm"}],
                "encrypted_content": "Y29ydGV4LTE6aG0=",
            },
            {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "ok"},
            {"type": "custom_tool_call", "call_id": "call_2", "name": "g", "input": "x"},
        ],
        "tools": [
            {"type": "function", **_FUNCTION},
            {"type": "web_search"},
            {"type": "namespace", "name": "ns", "tools": [{"type": "function", **_FUNCTION}]},
        ],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": _FORMAT, "verbosity": "low"},
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "max_output_tokens": 4,
        "metadata": {"a": "b"},
        "store": False,
    },
    MESSAGES: {
        "model": MODEL,
        "max_tokens": 4,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": "hi"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": ""},
                    {"type": "text", "text": "so"},
                    {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": "b"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "ok"},
                    {"type": "text", "text": "and?"},
                ],
            },
            {"role": "system", "content": "Still brief."},
        ],
        "tools": [{"name": "f", "description": "Does it.", "input_schema": _SCHEMA}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "low"},
        "stop_sequences": ["END"],
        "metadata": {"user_id": "me"},
    },
}
VALID[COUNT_TOKENS] = {
    name: value for name, value in VALID[MESSAGES].items() if name not in ("max_tokens", "metadata")
}

_RAW = "\ue000"  # of private use: no valid body has it
_RAW_JSON = (
    "NaN", "-Infinity", "1e999", "-0", "01", '"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"',
    "9" * 400, "-" + "9" * 20, "1" * 5000, "0." + "3" * 300, "[" * 60 + "]" * 60,
    "[" * 70 + "]" * 70, '{"a":' * 70 + "1" + "}" * 70, '"' + "\\\\" * 500 + '"',
    '"' + "\\ud83d\\ude00" * 200 + '"', '"' + "\\u005b" * 300 + '"', '{"a":1,"a":{"a":[]}}',
    '{"type":"text","type":"image"}', "tru", '"\x00"', '"\x1f"', "{}", "[[]]", "null",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63, 10**30, 1.5, -1e308, "", "x", "auto",
    "\N{BOMB}\u0000\u202e", "x" * 3000, [], {}, [None], {"": None}, {"type": None}, {"type": "x"},
    [[]], ["x", 1], {"role": "user", "content": "x"}, MODEL, "no/such/model",
)  # fmt: skip
_TARGETS = (
    "/v1/models", "/v1/models?limit=1000", "/v1/models?limit=0", "/v1/models?limit=%00",
    "/v1/models?after_id=x&before_id=y", "/v1/models?limit=" + "9" * 500,
    f"/v1/models/{MODEL}", "/v1/models/no/such", "/v1/models/%ff%00", "/v1/models//", "/health",
    "/", "/v1/requests/req-1", "/v1/requests/", "/v1", "/v1/audio/speech", "/%2e%2e/etc", "//v1//a",
    "/v1/chat/completions/", "/v1/messages/?beta=true", "/v1/messages/count_tokens?beta=true",
    "/v1/responses/resp_1", "/v1/messages/batches", "/v1/" + "x" * 2000, "/v1/embeddings?a=%zz&b",
)  # fmt: skip
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND")
_HEADERS = (
    ("anthropic-version", "2023-06-01"), ("anthropic-version", "tomorrow"),
    ("anthropic-beta", "something-2099"), ("x-api-key", "ctx_none"),
    ("authorization", "Bearer "), ("authorization", "Basic \xff"), ("accept", "text/html"),
    ("x-request-id", "mine-1"), ("x-request-id", "no sane id \xe9"), ("cookie", "a=b"),
    ("accept-encoding", "br"), ("origin", "http://evil"), ("content-language", "\xff"),
)  # fmt: skip
_CONTENT_TYPES = (
    "application/json", "text/plain", "application/x-www-form-urlencoded", "", "multipart/x",
    "application/json; charset=utf-16", "image/png",
)  # fmt: skip

Tree = Any
Place = tuple[Any, Any]
"""What contains a value, and its key or index there."""


def case(index: int, seed: int) -> Sent:
    """Return the request with this number."""
    draw = random.Random(f"{seed} {index}")
    if draw.random() < 0.12:
        return _elsewhere(draw)
    target = draw.choice(list(VALID))
    body = mutated_body(target, draw)
    headers = _some_headers(draw)
    if draw.random() < 0.08:
        body = _packed(body, draw)
        headers.append(("content-encoding", draw.choice(["gzip", "GZIP", "gzip", "br", "deflate"])))
    query = draw.choice(["", "", "", "?beta=true", "?a=%ff&b[]=1", "/"])
    method = draw.choice(_METHODS) if draw.random() < 0.03 else "POST"
    is_chunked = draw.random() < 0.1
    return Sent(method, target + query, tuple(headers), body, is_chunked)


def mutated_body(target: str, draw: random.Random) -> bytes:
    """Return a body for a path, with some things wrong, or nothing."""
    tree = json.loads(json.dumps(VALID[target]))
    if draw.random() < 0.4:
        tree["stream"] = True
    raws: list[str] = []
    for _ in range(draw.choice([0, 1, 1, 1, 2, 3, 5])):
        places = _places(tree)
        if places:
            draw.choice(_CHANGES)(draw.choice(places), draw, raws)
    text = json.dumps(tree, ensure_ascii=draw.random() < 0.5)
    for number, raw in enumerate(raws):
        text = text.replace(json.dumps(f"{_RAW}{number}{_RAW}"), raw, 1)
        text = text.replace(f'"{_RAW}{number}{_RAW}"', raw, 1)
    body = text.encode(errors="surrogatepass")
    return draw.choice(_DAMAGES)(body, draw) if draw.random() < 0.2 else body


def dialect_of(sent: Sent) -> str:
    """Return whose errors a client of this path understands."""
    path = sent.target.partition("?")[0].rstrip("/")
    if path in ANTHROPIC:
        return "anthropic"
    if path in VALID:
        return "openai"
    has_version = any(name == "anthropic-version" for name, _ in sent.headers)
    return "anthropic" if has_version else "openai"


def _places(tree: Tree) -> list[Place]:
    found: list[Place] = []
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree))
    for key in list(keys):
        found.append((tree, key))
        if isinstance(tree[key], (dict, list)):
            found += _places(tree[key])
    return found


def _drop(place: Place, draw: random.Random, raws: list[str]) -> None:
    container, key = place
    del container[key]


def _retype(place: Place, draw: random.Random, raws: list[str]) -> None:
    container, key = place
    container[key] = json.loads(json.dumps(draw.choice(_VALUES)))


def _make_raw(place: Place, draw: random.Random, raws: list[str]) -> None:
    container, key = place
    container[key] = f"{_RAW}{len(raws)}{_RAW}"
    raws.append(draw.choice(_RAW_JSON))


def _nest(place: Place, draw: random.Random, raws: list[str]) -> None:
    container, key = place
    value = container[key]
    container[key] = draw.choice([[value], {"type": value}, {"text": value}, [value, value]])


def _double(place: Place, draw: random.Random, raws: list[str]) -> None:
    container, key = place
    if isinstance(container, list):
        container.insert(key, json.loads(json.dumps(container[key])))
    else:
        _rename(place, draw, raws)


def _rename(place: Place, draw: random.Random, raws: list[str]) -> None:
    container, key = place
    if isinstance(container, dict):
        container[draw.choice(["type", "content", "id", "", "x\u0000", key + "_"])] = container[key]


def _swap(place: Place, draw: random.Random, raws: list[str]) -> None:
    container, _ = place
    if isinstance(container, list):
        draw.shuffle(container)
    else:
        values = list(container.values())
        draw.shuffle(values)
        container.update(zip(list(container), values, strict=True))


Change = Callable[[Place, random.Random, list[str]], None]
_CHANGES: tuple[Change, ...] = (_drop, _retype, _retype, _make_raw, _nest, _double, _rename, _swap)


def _truncate(body: bytes, draw: random.Random) -> bytes:
    return body[: draw.randrange(len(body) + 1)]


def _splice(body: bytes, draw: random.Random) -> bytes:
    start, end = sorted(draw.choices(range(len(body) + 1), k=2))
    return body[:start] + body[end:] + body[start : start + 20]


def _flip(body: bytes, draw: random.Random) -> bytes:
    changed = bytearray(body)
    for _ in range(draw.randint(1, 8)):
        if changed:
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def _insert(body: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(body) + 1)
    return body[:at] + draw.choice([b"\xff\xfe", b"\xed\xa0\x80", b"\x00", b"\\", b'"']) + body[at:]


def _surround(body: bytes, draw: random.Random) -> bytes:
    before, after = draw.choice(
        [(b"\xef\xbb\xbf", b""), (b"", b"{}"), (b" " * 500, b""), (b"[", b"]")]
    )
    return before + body + after


_DAMAGES = (_truncate, _splice, _flip, _insert, _surround)


def _packed(body: bytes, draw: random.Random) -> bytes:
    packed = gzip.compress(body, 1)
    return draw.choice([packed, packed, packed[:-5], packed + b"x", body, packed[10:], b""])


def _some_headers(draw: random.Random) -> list[tuple[str, str]]:
    headers = draw.sample(_HEADERS, draw.choice([0, 0, 1, 2]))
    return [*headers, ("content-type", draw.choice(_CONTENT_TYPES))]


def _elsewhere(draw: random.Random) -> Sent:
    """Return a request for a path that takes no body, or for none at all."""
    method = draw.choice(_METHODS) if draw.random() < 0.5 else "GET"
    body = b"{}" if method in ("POST", "PUT", "PATCH") else b""
    return Sent(method, draw.choice(_TARGETS), tuple(_some_headers(draw)), body)
