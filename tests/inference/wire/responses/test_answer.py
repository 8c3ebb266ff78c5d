"""A response told event by event and the one told at once say what the model said, typed."""

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from inference.wire import errors, events
from inference.wire.dialect import AnswerHead
from inference.wire.responses.answer import ResponseShape, ResponseStream
from inference.wire.responses.request import parse_response_request
from neuron_agent.protocol import Usage
from tests.inference.wire.responses.event_reader import items_of, joined, read, told

HEAD = AnswerHead("0123456789abcdef01234567", 1_700_000_000)
USAGE = Usage(7, 3, cached_tokens=2, reasoning_tokens=1)
ASKED: dict[str, Any] = {
    "model": "org/m",
    "input": "hi",
    "instructions": "Be brief.",
    "metadata": {"a": "b"},
    "temperature": 0.5,
    "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function"}]},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}, "verbosity": "low"},
    "reasoning": {"effort": "high"},
    "max_output_tokens": 99,
}

text = st.text(min_size=1, max_size=8)


@st.composite
def answers(draw: st.DrawFn) -> list[events.ChatEvent]:
    """What a neuron may say: any parts in any order, arguments only after their call's start."""
    found: list[events.ChatEvent] = []
    if draw(st.booleans()):
        found.append(events.PromptRead(Usage(7, 0)))
    num_calls = 0
    for kind in draw(st.lists(st.sampled_from(["text", "reasoning", "call"]), max_size=6)):
        pieces = draw(st.lists(text, min_size=kind != "call", max_size=3))
        if kind == "call":
            found.append(events.ToolCallStarted(num_calls, f"call_{num_calls}", draw(text)))
            found += [events.ToolArgumentsDelta(num_calls, piece) for piece in pieces]
            num_calls += 1
        else:
            of = events.TextDelta if kind == "text" else events.ReasoningDelta
            found += [of(piece) for piece in pieces]
    reason = draw(st.sampled_from(["stop", "length", "tool_calls", "content_filter"]))
    return [*found, events.Finished(reason, USAGE)]


shapes = st.builds(
    ResponseShape,
    st.just({"model": "org/m"}),
    summarizes_reasoning=st.booleans(),
    carries_reasoning=st.booleans(),
)


def shape_of(**fields: Any) -> ResponseShape:
    shape = parse_response_request(json.dumps({**ASKED, **fields}).encode()).shape
    assert isinstance(shape, ResponseShape)
    return shape


def streamed(shape: ResponseShape, said: list[events.ChatEvent]) -> bytes:
    stream = shape.stream(HEAD)
    return stream.open() + b"".join(stream.feed(event) for event in said)


def whole(shape: ResponseShape, said: list[events.ChatEvent]) -> dict[str, Any]:
    collector = shape.whole(HEAD)
    for event in said:
        collector.feed(event)
    found: dict[str, Any] = json.loads(collector.body())
    return found


@cache
def event_type() -> TypeAdapter[ResponseStreamEvent]:
    return TypeAdapter(ResponseStreamEvent)


@given(shapes, answers(), st.lists(st.integers(0, 100_000), max_size=12))
def test_what_was_said_arrives_however_the_bytes_are_cut(
    shape: ResponseShape, said: list[events.ChatEvent], places: list[int]
) -> None:
    payloads = read(streamed(shape, said), places)
    assert told(payloads) == [
        event for event in said if not isinstance(event, (events.PromptRead, events.Finished))
    ]
    assert [payload["type"] for payload in payloads[:2]] == [
        "response.created",
        "response.in_progress",
    ]
    usage = payloads[-1]["response"]["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (7, 3, 10)
    assert usage["input_tokens_details"]["cached_tokens"] == 2
    assert usage["output_tokens_details"]["reasoning_tokens"] == 1


@given(shapes, answers())
def test_the_whole_answer_is_what_a_stream_ends_with(
    shape: ResponseShape, said: list[events.ChatEvent]
) -> None:
    response = whole(shape, said)
    payloads = read(streamed(shape, said))
    assert payloads[-1]["response"] == response
    assert payloads[-1]["type"] == f"response.{response['status']}"
    assert items_of(response) == joined(told(payloads))
    done = [told["item"] for told in payloads if told["type"] == "response.output_item.done"]
    assert done == response["output"]


@given(answers(), st.booleans(), st.booleans())
@settings(max_examples=25, deadline=None)
def test_openais_own_types_take_every_event(
    said: list[events.ChatEvent], wants_summary: bool, is_carried: bool
) -> None:
    shape = shape_of(
        reasoning={"effort": "low", "summary": "auto" if wants_summary else None},
        include=["reasoning.encrypted_content"] if is_carried else [],
    )
    for payload in read(streamed(shape, said)):
        parsed = event_type().validate_python(payload)
        assert parsed.type == payload["type"]
    Response.model_validate(whole(shape, said))


def test_the_end_names_its_reason() -> None:
    shape = shape_of()
    cut_off = whole(shape, [events.TextDelta("so"), events.Finished("length", USAGE)])
    assert cut_off["status"] == "incomplete"
    assert cut_off["incomplete_details"] == {"reason": "max_output_tokens"}
    assert cut_off["output"][0]["status"] == "incomplete"
    complete = whole(shape, [events.TextDelta("so"), events.Finished("stop", USAGE)])
    assert complete["status"] == "completed"
    assert complete["incomplete_details"] is None
    assert complete["output"][0]["status"] == "completed"


def test_all_items_but_the_last_are_complete_in_an_answer_that_was_cut_off() -> None:
    said = [events.ReasoningDelta("hm"), events.TextDelta("so"), events.Finished("length", USAGE)]
    output = whole(shape_of(), said)["output"]
    assert [item["status"] for item in output] == ["completed", "incomplete"]


def test_a_response_repeats_its_request() -> None:
    response = whole(shape_of(), [events.Finished("stop", USAGE)])
    for name in ("model", "instructions", "metadata", "temperature", "tools", "tool_choice"):
        expected = ASKED[name]
        assert response[name] == expected, name
    assert response["text"]["verbosity"] == "low"
    assert response["text"]["format"]["schema"] == {}
    assert response["reasoning"] == {"effort": "high", "summary": None}
    assert response["max_output_tokens"] == 99
    assert (response["store"], response["background"]) == (False, False)
    assert response["output"] == []


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
def test_line_breaks_of_a_request_break_no_event(line_break: str) -> None:
    asked = json.dumps({**ASKED, "instructions": "a\r\nb"}, indent=2).replace("\n", line_break)
    shape = parse_response_request(asked.encode()).shape
    assert isinstance(shape, ResponseShape)
    data = streamed(shape, [events.TextDelta("a\n"), events.Finished("stop", USAGE)])
    assert b"\r" not in data
    last = read(data)[-1]["response"]
    assert (last["instructions"], last["tools"]) == ("a\r\nb", ASKED["tools"])
    assert last["text"]["format"]["schema"] == {}


def test_a_stream_lives_without_the_model_saying_anything() -> None:
    stream = shape_of().stream(HEAD)
    payloads = read(stream.open() + stream.idle() + stream.feed(events.TextDelta("hi")))
    assert [payload["type"] for payload in payloads[:4]] == [
        "response.created",
        "response.in_progress",
        "response.in_progress",
        "response.output_item.added",
    ]
    assert payloads[2]["response"] == payloads[1]["response"]


def test_a_sign_of_life_in_the_middle_does_not_disturb_the_open_item() -> None:
    stream = shape_of().stream(HEAD)
    data = stream.open() + stream.feed(events.TextDelta("a")) + stream.idle()
    data += stream.feed(events.TextDelta("b")) + stream.feed(events.Finished("stop", USAGE))
    payloads = read(data)
    assert told(payloads) == [events.TextDelta("a"), events.TextDelta("b")]
    assert items_of(payloads[-1]["response"]) == [("message", "ab")]


@given(shapes, answers())
def test_a_stream_that_breaks_ends_as_failed_with_what_was_said(
    shape: ResponseShape, said: list[events.ChatEvent]
) -> None:
    stream = shape.stream(HEAD)
    data = stream.open() + b"".join(stream.feed(event) for event in said[:-1])
    payloads = read(data + stream.fail(errors.UpstreamError("It broke."), "req-1"))
    last = payloads[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "It broke."}
    deltas = [
        event for event in said if not isinstance(event, (events.PromptRead, events.Finished))
    ]
    assert items_of(last["response"]) == joined(deltas)


def test_openais_types_take_a_failure() -> None:
    stream = shape_of().stream(HEAD)
    data = stream.open() + stream.feed(events.TextDelta("a"))
    data += stream.fail(errors.Saturated("Full.", retry_after_seconds=5), "req-1")
    for payload in read(data):
        event_type().validate_python(payload)


def test_reasoning_is_a_summary_where_one_was_asked_for() -> None:
    said = [events.ReasoningDelta("hm"), events.Finished("stop", USAGE)]
    (raw,) = whole(shape_of(), said)["output"]
    assert (raw["summary"], raw["content"]) == ([], [{"type": "reasoning_text", "text": "hm"}])
    (summarized,) = whole(shape_of(reasoning={"summary": "auto"}), said)["output"]
    assert summarized["summary"] == [{"type": "summary_text", "text": "hm"}]
    assert "content" not in summarized


def test_reasoning_is_packed_only_for_who_wants_to_send_it_back() -> None:
    said = [events.ReasoningDelta("hm"), events.Finished("stop", USAGE)]
    assert "encrypted_content" not in whole(shape_of(), said)["output"][0]
    shape = shape_of(include=["reasoning.encrypted_content"])
    payloads = read(streamed(shape, said))
    items = [payload["item"] for payload in payloads if "item" in payload]
    assert items[0]["encrypted_content"] is None
    assert items[1]["encrypted_content"]


@pytest.mark.parametrize("before", [[], [events.TextDelta("hi")]])
def test_arguments_without_a_call_are_the_neurons_fault(before: list[events.ChatEvent]) -> None:
    stream, collector = shape_of().stream(HEAD), shape_of().whole(HEAD)
    for event in before:
        stream.feed(event)
        collector.feed(event)
    with pytest.raises(errors.UpstreamError):
        stream.feed(events.ToolArgumentsDelta(0, "{}"))
    with pytest.raises(errors.UpstreamError):
        collector.feed(events.ToolArgumentsDelta(0, "{}"))


def test_a_call_is_told_in_the_clients_words() -> None:
    function = {"type": "function", "name": "f"}
    tools = [function, {"type": "namespace", "name": "ns", "description": "d", "tools": [function]}]
    said: list[events.ChatEvent] = [
        events.ToolCallStarted(0, "call_1", "f"),
        events.ToolCallStarted(1, "call_2", "ns__f"),
        events.Finished("tool_calls", USAGE),
    ]
    shape = shape_of(tools=tools, tool_choice="auto")
    response = whole(shape, said)
    first, second = response["output"]
    assert (first["name"], first.get("namespace")) == ("f", None)
    assert (second["name"], second["namespace"]) == ("f", "ns")
    assert response["tools"] == tools
    for payload in read(streamed(shape, said)):
        event_type().validate_python(payload)


def test_ids_are_unique_and_say_what_they_are_of() -> None:
    said: list[events.ChatEvent] = [
        events.ReasoningDelta("a"),
        events.TextDelta("b"),
        events.ToolCallStarted(0, "call_1", "f"),
        events.ToolCallStarted(1, "call_2", "f"),
        events.Finished("tool_calls", USAGE),
    ]
    response = whole(shape_of(), said)
    ids = [item["id"] for item in response["output"]]
    assert [id_.partition("_")[0] for id_ in ids] == ["rs", "msg", "fc", "fc"]
    assert len(set(ids)) == len(ids)
    assert response["id"] == f"resp_{HEAD.unique}"
    assert response["created_at"] == HEAD.created
    assert [item["call_id"] for item in response["output"][2:]] == ["call_1", "call_2"]


def test_no_done_marker_ends_a_stream() -> None:
    data = streamed(shape_of(), [events.Finished("stop", USAGE)])
    assert b"[DONE]" not in data
    assert isinstance(shape_of().stream(HEAD), ResponseStream)
