"""The demo model's conversations in every dialect, through the SDKs, in their strict mode."""

import json
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from neuron_agent.demo.texts import CONVERSATIONS, Conversation
from tests.demo_meaning import Meaning, meaning_of
from tests.e2e.cluster import Cluster, wait_until
from tests.e2e.http import get_json

MODEL = "cortex-demo"
GREETING, *_ = CONVERSATIONS
ALL = pytest.mark.parametrize("talk", CONVERSATIONS, ids=lambda talk: talk.name)
SMALL_OBJECT = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 10}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.fixture
def claude(cluster: Cluster) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=cluster.api, api_key="none", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture
def gpt(cluster: Cluster) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{cluster.api}/v1",
        api_key="none",
        max_retries=0,
        _strict_response_validation=True,
    ) as client:
        yield client


# --- Anthropic's messages ------------------------------------------------------------------------


def as_messages(talk: Conversation) -> dict[str, Any]:
    """Return a conversation as a client of Anthropic's API would send it."""
    asked: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 1000,
        "messages": [_anthropic_turn(message) for message in talk.messages],
        "extra_body": {"temperature": 0},
    }
    if talk.chat_template_kwargs:
        asked["thinking"] = {"type": "enabled", "budget_tokens": 1024}
    if talk.tools:
        asked["tools"] = [
            {
                "name": tool["function"]["name"],
                "description": tool["function"].get("description", ""),
                "input_schema": tool["function"]["parameters"],
            }
            for tool in talk.tools
        ]
    return asked


def _anthropic_turn(message: dict[str, Any]) -> dict[str, Any]:
    match message:
        case {"role": "tool", "tool_call_id": call_id, "content": content}:
            result = {"type": "tool_result", "tool_use_id": call_id, "content": content}
            return {"role": "user", "content": [result]}
        case {"role": "assistant", "tool_calls": calls}:
            uses = [
                {
                    "type": "tool_use",
                    "id": call["id"],
                    "name": call["function"]["name"],
                    "input": json.loads(call["function"]["arguments"]),
                }
                for call in calls
            ]
            return {"role": "assistant", "content": uses}
        case _:
            return {"role": message["role"], "content": message["content"]}


def messages_meaning(message: anthropic.types.Message) -> Meaning:
    blocks = message.content
    return Meaning(
        thought="".join(block.thinking for block in blocks if block.type == "thinking"),
        said="".join(block.text for block in blocks if block.type == "text"),
        calls=tuple((b.name, b.input) for b in blocks if b.type == "tool_use"),
    )


@ALL
def test_messages_say_what_was_promised(claude, talk):
    asked = as_messages(talk)
    whole = claude.messages.create(**asked)
    assert messages_meaning(whole) == meaning_of(talk.reply)
    with claude.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    assert messages_meaning(streamed) == meaning_of(talk.reply)
    assert streamed.stop_reason == whole.stop_reason
    assert whole.stop_reason == ("tool_use" if meaning_of(talk.reply).calls else "end_turn")
    usage = streamed.usage
    prompt_tokens = usage.input_tokens + (usage.cache_read_input_tokens or 0)
    counted = {name: asked[name] for name in ("messages", "tools", "thinking") if name in asked}
    assert claude.messages.count_tokens(model=MODEL, **counted).input_tokens == prompt_tokens


def test_tokens_are_counted_while_nothing_is_loaded(cluster, claude):
    asked = as_messages(GREETING)
    usage = claude.messages.create(**asked).usage
    cluster.manage("unload", MODEL)
    wait_until(lambda: not get_json(f"{cluster.neuron}/models")["models"], what="it is gone")
    counted = claude.messages.count_tokens(model=MODEL, messages=asked["messages"])
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert not get_json(f"{cluster.neuron}/models")["models"]


def test_a_stop_sequence_is_told(claude):
    message = claude.messages.create(**as_messages(GREETING), stop_sequences=["demo model"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "demo model")
    assert messages_meaning(message).said == "Hello! I am the "


def test_a_forced_tool_is_called(claude):
    (tool,) = as_messages(CONVERSATIONS[-1])["tools"]
    schema = {**SMALL_OBJECT, "properties": {"name": {"type": "string", "maxLength": 10}}}
    message = claude.messages.create(
        **as_messages(GREETING),
        tools=[{**tool, "input_schema": schema}],
        tool_choice={"type": "any"},
    )
    ((name, arguments),) = messages_meaning(message).calls
    assert (name, list(arguments)) == ("get_weather", ["name"])


def test_models_are_listed_for_anthropics_clients(claude):
    assert MODEL in [model.id for model in claude.models.list(limit=1000)]
    assert claude.models.retrieve(MODEL).type == "model"


def test_errors_reach_anthropics_clients_as_theirs(claude):
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(**{**as_messages(GREETING), "model": "no/such"})
    long = {"role": "user", "content": "word " * 40_000}
    with pytest.raises(
        anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > \d+ max"
    ):
        claude.messages.create(**{**as_messages(GREETING), "messages": [long]})


# --- OpenAI's responses --------------------------------------------------------------------------


def as_response(talk: Conversation) -> dict[str, Any]:
    """Return a conversation as a client of OpenAI's responses would send it."""
    items = [item for message in talk.messages for item in _items(message)]
    asked: dict[str, Any] = {"model": MODEL, "input": items, "temperature": 0, "store": False}
    if talk.chat_template_kwargs:
        asked["reasoning"] = {"effort": "medium"}
    if talk.tools:
        asked["tools"] = [{"type": "function", **tool["function"]} for tool in talk.tools]
    return asked


def _items(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    match message:
        case {"role": "tool", "tool_call_id": call_id, "content": content}:
            yield {"type": "function_call_output", "call_id": call_id, "output": content}
        case {"role": "assistant", "tool_calls": calls}:
            for call in calls:
                yield {"type": "function_call", "call_id": call["id"], **call["function"]}
        case _:
            yield {"role": message["role"], "content": message["content"]}


def response_meaning(response: Any) -> Meaning:
    thoughts = [item for item in response.output if item.type == "reasoning"]
    calls = [item for item in response.output if item.type == "function_call"]
    return Meaning(
        thought="".join(part.text for item in thoughts for part in item.content or item.summary),
        said=response.output_text,
        calls=tuple((call.name, json.loads(call.arguments)) for call in calls),
    )


@ALL
def test_responses_say_what_was_promised(gpt, talk):
    asked = as_response(talk)
    whole = gpt.responses.create(**asked)
    assert response_meaning(whole) == meaning_of(talk.reply)
    with gpt.responses.stream(**asked) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_response()
    assert response_meaning(streamed) == meaning_of(talk.reply)
    assert (whole.status, streamed.status) == ("completed", "completed")
    assert streamed.usage.input_tokens == whole.usage.input_tokens > 0


def test_a_response_keeps_to_a_schema(gpt):
    shape = {"type": "json_schema", "name": "person", "strict": True, "schema": SMALL_OBJECT}
    response = gpt.responses.create(**as_response(GREETING), text={"format": shape})
    assert list(json.loads(response.output_text)) == ["name"]


# --- OpenAI's completions and embeddings ---------------------------------------------------------


def test_completions_and_embeddings_pass_through(cluster, gpt):
    completion = gpt.completions.create(model=MODEL, prompt="Cortex puts", max_tokens=5)
    assert completion.usage.completion_tokens == 5
    chunks = list(gpt.completions.create(model=MODEL, prompt="Hi", max_tokens=5, stream=True))
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")
    asked = {"model": MODEL, "input": ["one", "two"], "dimensions": 8}
    floats = gpt.embeddings.create(**asked, encoding_format="float")
    # What the SDK asks for by default its own strict mode refuses.
    with openai.OpenAI(base_url=f"{cluster.api}/v1", api_key="none") as lenient:
        packed = lenient.embeddings.create(**asked)
    for one, other in zip(floats.data, packed.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)


# --- what is left behind -------------------------------------------------------------------------


def test_every_request_leaves_its_record(cluster, claude, gpt):
    began = time.time()
    claude.messages.create(**as_messages(GREETING))
    gpt.responses.create(**as_response(GREETING))
    gpt.embeddings.create(model=MODEL, input="one", encoding_format="float")

    def dialects() -> set[str]:
        found = "RequestRecord.objects.filter(at__gte=__import__('datetime').datetime.fromtimestamp"
        rows = cluster.query(
            f"list({found}({began}, tz=__import__('datetime').UTC), status=200)"
            ".values_list('dialect', flat=True))"
        )
        return set(rows)

    wait_until(lambda: dialects() >= {"messages", "responses", "embeddings"}, what="all are there")
