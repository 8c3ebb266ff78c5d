"""Whole requests over HTTP: choices, thoughts, calls and completions, as OpenAI's SDK sees them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai import OpenAI

from tests.fakes.fake_device import CONTEXT_TOKENS, REPLY
from tests.neuron_agent.front import Front, data_frames, read_until, wait_until
from tests.neuron_agent.tiny_model import write_model

pytestmark = pytest.mark.slow

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
THOUGHT = "<think>\nhm, well\n</think>\n\n"
COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def running_front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = write_model(tmp_path_factory.mktemp("models") / "tiny")
    settings = {"MAX_IN_FLIGHT": "4", "MAX_QUEUE_DEPTH": "4", "MAX_PER_PRINCIPAL": "2"}
    with Front(settings) as front:
        assert front.load(folder).status == 200
        yield front


@pytest.fixture
def front(running_front: Front) -> Iterator[Front]:
    yield running_front
    running_front.hang_up()
    wait_until(lambda: running_front.num_requests() == 0, "every place is given back")


@pytest.fixture
def client(front: Front) -> Iterator[OpenAI]:
    base_url = f"http://127.0.0.1:{front.port}/v1"
    with OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        yield client


def user(content: str) -> Any:
    return [{"role": "user", "content": content}]


def told(front: Front, **fields: Any) -> dict[str, Any]:
    """Return what reached the device."""
    return dict(json.loads(front.chat("TELL", **fields).text))


# --- chat ----------------------------------------------------------------------------------------


def test_thoughts_and_calls_reach_the_sdk_whole(client: OpenAI) -> None:
    messages = user(f"SAY {THOUGHT}Let me see.\n{CALL}\n{CALL}")
    answer = client.chat.completions.create(model="org/tiny", messages=messages, tools=[WEATHER])
    message: Any = answer.choices[0].message
    assert (message.reasoning_content, message.content) == ("hm, well", "Let me see.")
    assert [call.function.name for call in message.tool_calls] == ["get_weather"] * 2
    assert [json.loads(call.function.arguments) for call in message.tool_calls] == [
        {"city": "Paris"}
    ] * 2
    assert len({call.id for call in message.tool_calls}) == 2
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.usage is not None
    details = answer.usage.completion_tokens_details
    assert details is not None
    assert 0 < (details.reasoning_tokens or 0) < answer.usage.completion_tokens


def test_thoughts_and_calls_reach_the_sdk_as_a_stream(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="org/tiny", messages=user(f"SAY {THOUGHT}{CALL}"), tools=[WEATHER]
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion().choices[0]
    assert any(event.type == "tool_calls.function.arguments.delta" for event in events)
    assert final.message.tool_calls is not None
    assert final.message.tool_calls[0].function.parsed_arguments is None
    assert json.loads(final.message.tool_calls[0].function.arguments) == {"city": "Paris"}
    assert final.finish_reason == "tool_calls"


def test_name_of_a_call_comes_before_its_arguments_and_thoughts_before_both(front: Front) -> None:
    frames = front.stream(f"SAY {THOUGHT}{CALL}", tools=[WEATHER])
    deltas = [chunk["choices"][0]["delta"] for chunk in data_frames(frames)]
    assert deltas[0]["role"] == "assistant"
    assert deltas[0]["reasoning_content"] == "h"
    (opening, *later) = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert opening["id"].startswith("call_")
    assert opening["function"] == {"name": "get_weather", "arguments": ""}
    assert not any("id" in call or "name" in call["function"] for call in later)


def test_without_tools_their_markup_is_text(front: Front) -> None:
    assert front.chat(f"SAY {CALL}").text == CALL


@pytest.mark.parametrize("streaming", [True, False])
def test_choices_come_side_by_side_and_the_prompt_counts_once(
    front: Front, streaming: bool
) -> None:
    one = front.chat("SAY abc").json["usage"]
    if streaming:
        options = {"include_usage": True}
        *chunks, last = data_frames(front.stream("SAY abc", n=3, stream_options=options))
        usage, texts = last["usage"], ["", "", ""]
        for choice in (chunk["choices"][0] for chunk in chunks):
            texts[choice["index"]] += choice["delta"].get("content", "")
    else:
        body = front.chat("SAY abc", n=3).json
        usage = body["usage"]
        texts = [choice["message"]["content"] for choice in body["choices"]]
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert texts == ["abc"] * 3
    assert usage["prompt_tokens"] == one["prompt_tokens"]
    assert usage["completion_tokens"] == 3 * one["completion_tokens"]


def test_choices_have_seeds_in_a_row(front: Front) -> None:
    choices = front.chat("TELL", n=2, seed=7).json["choices"]
    sampling = [json.loads(choice["message"]["content"])["sampling"] for choice in choices]
    assert [each["seed"] for each in sampling] == [7, 8]


def test_choice_that_met_its_stop_string_leaves_the_others_running(front: Front) -> None:
    choices = front.chat("SAY one two END three", n=2, stop="END").json["choices"]
    assert [choice["message"]["content"] for choice in choices] == ["one two "] * 2


def test_client_of_several_choices_that_leaves_gives_back_all_places(front: Front) -> None:
    sock = front.open_chat("FOREVER", stream=True, n=3)
    read_until(sock, b"data: ")
    assert front.num_requests() == 3
    sock.close()
    wait_until(lambda: front.num_requests() == 0, "the places are free")


def test_waiting_choices_are_cancelled_together(front: Front) -> None:
    sock = front.open_chat("QUEUED", "X-Request-Id: three\r\n", n=3)
    wait_until(lambda: front.num_requests() == 3, "they are admitted")
    assert front.ask("DELETE", "/v1/requests/three").status == 200
    assert b"request_cancelled" in read_until(sock, b"}}")


def test_sampling_reaches_the_device(front: Front) -> None:
    asked = {
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 7,
        "min_p": 0.125,
        "presence_penalty": 1.5,
        "frequency_penalty": -1.5,
        "repetition_penalty": 1.25,
        "logit_bias": {"5": -100},
        "seed": 9,
    }
    command = told(front, **asked, min_tokens=3, stop_token_ids=[7], logprobs=True, top_logprobs=2)
    assert command["sampling"] == asked
    assert (command["min_tokens"], command["num_logprobs"]) == (3, 2)
    assert command["stop_ids"] == [2, 7]
    plain = told(front)
    assert (plain["sampling"]["temperature"], plain["sampling"]["top_k"]) == (0.6, 20)
    assert "min_tokens" not in plain
    assert "grammar" not in plain


def test_structures_reach_the_device_as_grammars(front: Front) -> None:
    schema = {"type": "object", "properties": {"unmistakable": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert "unmistakable" in told(front, response_format=wanted)["grammar"]
    named = {"type": "function", "function": {"name": "get_weather"}}
    assert "get_weather" in told(front, tools=[WEATHER], tool_choice=named)["grammar"]


def test_log_probabilities_reach_the_sdk(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="org/tiny",
        messages=user(f"SAY {THOUGHT}🙂 abc"),
        logprobs=True,
        top_logprobs=2,
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content or []
    assert b"".join(bytes(each.bytes or []) for each in content).decode() == "🙂 abc"
    assert all(len(each.top_logprobs) == 2 for each in content)
    assert content[0].logprob > content[-1].logprob


def test_token_ids_come_to_who_asks_for_them(front: Front) -> None:
    frames = front.stream(headers={"X-Cortex-Frames": "ids"})
    ids = [
        token
        for frame in frames
        if frame.startswith(b": cortex")
        for token in json.loads(frame.removeprefix(b": cortex ")).get("ids", [])
    ]
    told = front.ask("POST", "/detokenize", {"model": "org/tiny", "tokens": ids}).json
    assert told == {"prompt": REPLY}
    others = front.stream(headers={"X-Cortex-Frames": "1"})
    assert not any(b'"ids"' in frame for frame in others)


def controls(frames: list[bytes]) -> list[dict[str, Any]]:
    """Return what the control frames of a stream say."""
    prefix = b": cortex "
    return [json.loads(frame[len(prefix) :]) for frame in frames if frame.startswith(prefix)]


@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"tools": [WEATHER]}], ids=str)
def test_what_the_prompt_cost_is_told_before_any_of_the_answer(
    front: Front, fields: dict[str, Any]
) -> None:
    frames = front.stream(f"SAY {THOUGHT}{CALL}", headers={"X-Cortex-Frames": "1"}, **fields)
    *_, before, last = controls(frames)
    assert set(before) == {"usage"}
    assert before["usage"]["completion_tokens"] == 0
    for count in ("prompt_tokens", "cached_tokens"):
        assert before["usage"][count] == last["usage"][count] > 0
    first_data = next(frame for frame in frames if frame.startswith(b"data: "))
    assert frames.index(first_data) > frames.index(b": cortex " + msgspec.json.encode(before))


def test_prompt_of_an_answer_without_a_word_is_told_too(front: Front) -> None:
    frames = front.stream("SAY ", headers={"X-Cortex-Frames": "1"})
    assert [control["usage"]["completion_tokens"] for control in controls(frames)] == [0, 1]


def test_completion_tells_its_prompt_and_its_stop_string(front: Front) -> None:
    body = {"model": "org/tiny", "prompt": "SAY one two three", "stream": True, "stop": "two"}
    answer = front.ask("POST", COMPLETIONS, body, {"X-Cortex-Frames": "1"})
    before, last = controls(answer.body.split(b"\n\n"))
    assert before["usage"]["prompt_tokens"] == last["usage"]["prompt_tokens"] > 0
    assert last["stop_sequence"] == "two"


def test_stop_string_that_ended_the_first_choice_is_told(front: Front) -> None:
    options: Any = {"stop": ["END", "three"], "headers": {"X-Cortex-Frames": "1"}}
    *_, last = controls(front.stream("SAY one two END three", **options))
    assert (last["finish_reason"], last["stop_sequence"]) == ("stop", "END")
    *_, last = controls(front.stream("SAY one two", **options))
    assert last["finish_reason"] == "stop"
    assert "stop_sequence" not in last


# --- shares --------------------------------------------------------------------------------------


def test_request_that_is_queued_for_too_long_is_told_when_to_come_back(tmp_path: Path) -> None:
    with Front({"MAX_WAIT_SECONDS": "0.1"}) as front:
        front.load(write_model(tmp_path / "tiny"))
        answer = front.chat("QUEUED", n=2)
        assert (answer.status, answer.error["code"]) == (503, "saturated")
        assert answer.headers["retry-after"]
        (model,) = front.get("/health")["models"]
        assert model["rejected"] == {"waited_too_long": 1}
        assert front.num_requests() == 0


def test_caller_over_its_share_is_told_when_to_come_back(front: Front) -> None:
    ann = {"X-Cortex-Principal": "ann"}
    for _ in range(2):
        front.open_chat("QUEUED", "X-Cortex-Principal: ann\r\n")
    wait_until(lambda: front.num_requests() == 2, "her share is taken")
    answer = front.chat(headers=ann)
    assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
    assert answer.error["type"] == "rate_limit_error"
    assert int(answer.headers["retry-after"]) >= 1
    assert front.chat(headers={"X-Cortex-Principal": "bob"}).text == REPLY
    assert front.get("/health")["models"][0]["rejected"]["over_share"] >= 1


def test_anonymous_callers_leave_a_share_free(front: Front) -> None:
    for _ in range(6):
        front.open_chat("QUEUED")
    wait_until(lambda: front.num_requests() == 6, "they have what is left")
    assert front.chat().status == 429
    assert front.chat(headers={"X-Cortex-Principal": "ann"}, n=2).status == 200


# --- text completions ----------------------------------------------------------------------------


def test_completion_reaches_the_sdk_in_both_forms(client: OpenAI) -> None:
    prompt = f"SAY {THOUGHT}{CALL}"
    whole = client.completions.create(model="org/tiny", prompt=prompt, max_tokens=200, logprobs=1)
    assert whole.choices[0].text == THOUGHT + CALL  # nothing is read into it
    assert whole.choices[0].finish_reason == "stop"
    told = whole.choices[0].logprobs
    assert told is not None
    assert "".join(told.tokens or []) == THOUGHT + CALL
    assert (told.text_offset or [])[:2] == [0, len((told.tokens or [""])[0])]
    with client.completions.create(
        model="org/tiny", prompt=prompt, max_tokens=200, stream=True
    ) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream) == THOUGHT + CALL


def test_completions_of_several_prompts_come_in_their_order(front: Front) -> None:
    prompts = ["SAY abc", "SAY xyz"]
    body = {"model": "org/tiny", "prompt": prompts, "n": 2}
    answer = front.ask("POST", COMPLETIONS, body).json
    texts = [(choice["index"], choice["text"]) for choice in answer["choices"]]
    assert texts == [(0, "abc"), (1, "abc"), (2, "xyz"), (3, "xyz")]
    assert answer["object"] == "text_completion"
    counts = [front.ask("POST", "/tokenize", {**body, "prompt": p}).json for p in prompts]
    assert answer["usage"]["prompt_tokens"] == sum(each["count"] for each in counts)


def test_completion_of_token_ids(front: Front) -> None:
    ids = front.ask("POST", "/tokenize", {"model": "org/tiny", "prompt": "SAY abc"}).json["tokens"]
    answer = front.ask("POST", COMPLETIONS, {"model": "org/tiny", "prompt": ids}).json
    assert answer["choices"][0]["text"] == "abc"
    assert answer["usage"]["prompt_tokens"] == len(ids)


def test_completion_stops_as_a_chat_does(front: Front) -> None:
    def ask(**fields: Any) -> Any:
        body = {"model": "org/tiny", "prompt": "SAY one two three", **fields}
        return front.ask("POST", COMPLETIONS, body).json["choices"][0]

    assert ask(stop="two")["text"] == "one "
    assert ask(max_tokens=2)["finish_reason"] == "length"
    assert ask(logprobs=3, stop="two")["logprobs"]["tokens"]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"prompt": "x y " * CONTEXT_TOKENS}, "context_length_exceeded"),
        ({"prompt": [5] * CONTEXT_TOKENS}, "context_length_exceeded"),
        ({"prompt": ""}, "invalid_request"),
        ({"prompt": ["a"] * 100}, "invalid_request"),
        ({"prompt": "a", "echo": True}, "unsupported_parameter"),
    ],
)
def test_completion_that_cannot_be_is_refused(
    front: Front, fields: dict[str, Any], code: str
) -> None:
    answer = front.ask("POST", COMPLETIONS, {"model": "org/tiny", **fields})
    assert (answer.status, answer.error["code"]) == (400, code)


# --- adversaries ---------------------------------------------------------------------------------

JSON_SCHEMA = {"type": "json_schema"}


def pattern(expression: str) -> dict[str, str]:
    return {"type": "string", "pattern": expression}


HOSTILE: list[dict[str, Any]] = [
    {"response_format": JSON_SCHEMA | {"json_schema": {"schema": {"enum": ["x" * 100_000]}}}},
    {"response_format": JSON_SCHEMA | {"json_schema": {"schema": pattern("(?=a)b")}}},
    {"response_format": JSON_SCHEMA | {"json_schema": {"schema": pattern(r"(a*)\1")}}},
    {"response_format": JSON_SCHEMA | {"json_schema": {"schema": {"$ref": "#/$defs/no"}}}},
    {"response_format": JSON_SCHEMA | {"json_schema": {"schema": {"type": 5}, "strict": True}}},
    {"max_tokens": 0},
    {"max_tokens": 10**12},
    {"tools": [{"function": {"name": "f" * 10**6}}], "tool_choice": "required"},
    {"stop": ["a" * 10**6]},
    {"logit_bias": {"1" * 4000: 1}},
    {"chat_template_kwargs": {"tools": 1}},
]


@pytest.mark.parametrize("fields", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_request_fails_alone_with_a_clear_error(
    front: Front, fields: dict[str, Any]
) -> None:
    sock = front.open_chat("FOREVER", stream=True)
    read_until(sock, b"data: ")
    answer = front.chat(**fields)
    assert 400 <= answer.status < 500, answer.body
    assert answer.error["message"]
    assert b"Traceback" not in answer.body
    read_until(sock, b"\n\n")  # the neighbour streams on
    sock.close()


def test_unknown_token_ids_are_text_of_nothing(front: Front) -> None:
    body = {"model": "org/tiny", "tokens": [2**31 - 1]}
    assert front.ask("POST", "/detokenize", body).json == {"prompt": ""}
