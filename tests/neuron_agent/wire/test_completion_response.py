"""Text completions in OpenAI's shape, streamed and whole."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.protocol import Timing, Usage
from neuron_agent.wire.completion_response import CompletionCollector, CompletionStreamEncoder
from neuron_agent.wire.events import (
    ChatEvent,
    ChoiceFinished,
    Finished,
    TextDelta,
    TokenChance,
    TokenLogprobs,
    Tokens,
    Waited,
)
from neuron_agent.wire.stream_encoder import Framing, ResponseHead
from tests.neuron_agent.front import data_frames

HEAD = ResponseHead("cmpl-1", 123, "m")
FINISHED = Finished("stop", Usage(7, 5), Timing(1.0, 2.0, 3.0))
PIECES = st.lists(st.tuples(st.integers(0, 2), st.text(st.characters(codec="utf-8"), min_size=1)))


def token(text: str) -> TokenLogprobs:
    chance = TokenChance(text, text.encode(), -1.0)
    return TokenLogprobs(chance, (chance,), len(text))


def events_of(pieces: list[tuple[int, str]]) -> list[ChatEvent]:
    said = [TextDelta(text, choice, (token(text),)) for choice, text in pieces]
    ends = [ChoiceFinished("stop", choice) for choice in range(3)]
    return [Waited("queued"), Tokens((1,)), *said, *ends, FINISHED]


def streamed(pieces: list[tuple[int, str]]) -> list[dict[str, Any]]:
    encoder = CompletionStreamEncoder(HEAD, Framing())
    data = b"".join(map(encoder.feed, events_of(pieces)))
    return [chunk["choices"][0] for chunk in data_frames(data.split(b"\n\n"))]


def whole(pieces: list[tuple[int, str]]) -> Any:
    collector = CompletionCollector(HEAD)
    return json.loads([collector.feed(event) for event in events_of(pieces)][-1] or b"")


@given(PIECES)
def test_stream_put_together_is_the_whole_answer(pieces: list[tuple[int, str]]) -> None:
    body = whole(pieces)
    assert (body["object"], body["id"], body["usage"]["total_tokens"]) == (
        "text_completion",
        "cmpl-1",
        12,
    )
    for choice in body["choices"]:
        mine = [chunk for chunk in streamed(pieces) if chunk["index"] == choice["index"]]
        assert choice["text"] == "".join(chunk["text"] for chunk in mine)
        assert [chunk["finish_reason"] for chunk in mine][-1] == choice["finish_reason"] == "stop"
        for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
            parts = [chunk["logprobs"][name] for chunk in mine if chunk["logprobs"]]
            told = (choice["logprobs"] or {name: []})[name]
            assert told == [value for part in parts for value in part]


@given(PIECES)
def test_offsets_say_where_tokens_stand_in_the_text(pieces: list[tuple[int, str]]) -> None:
    for choice in whole(pieces)["choices"]:
        if choice["logprobs"] is None:
            continue
        told = choice["logprobs"]
        for text, offset in zip(told["tokens"], told["text_offset"], strict=True):
            assert choice["text"][offset:].startswith(text)


def test_parts_of_a_character_are_told_by_their_bytes_and_begin_at_one_place() -> None:
    def part(utf8: bytes, num_characters: int) -> TokenLogprobs:
        chance = TokenChance(utf8.decode(errors="replace"), utf8, -1.0)
        return TokenLogprobs(chance, (chance,), num_characters)

    said = [
        TextDelta("aü", 0, (part(b"a", 1), part(b"\xc3", 0), part(b"\xbc", 1))),
        TextDelta("b", 0, (part(b"b", 1),)),
    ]
    encoder, collector = CompletionStreamEncoder(HEAD, Framing()), CompletionCollector(HEAD)
    frames = data_frames(b"".join(map(encoder.feed, said)).split(b"\n\n"))
    parts = [frame["choices"][0]["logprobs"] for frame in frames]
    body = [collector.feed(event) for event in [*said, ChoiceFinished("stop"), FINISHED]][-1]
    told = json.loads(body or b"")["choices"][0]["logprobs"]
    assert told["tokens"] == ["a", "bytes:\\xc3", "bytes:\\xbc", "b"]
    assert told["text_offset"] == [0, 1, 1, 2]
    for name in ("tokens", "text_offset", "top_logprobs"):
        assert told[name] == [value for part in parts for value in part[name]]
