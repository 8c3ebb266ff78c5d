"""What a request may ask of an engine beside tokens, on a tiny model whose tokens can be read."""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import torch
from llguidance import LLMatcher, LLTokenizer

from neuron_agent.devices.channel import Output, Sampling, Submit
from neuron_agent.engine.engine import Engine
from neuron_agent.engine.forwards.forward import PackedForward
from neuron_agent.engine.forwards.slot_cache import SlotCache
from neuron_agent.engine.refusals import RequestRefused
from neuron_agent.engine.sampling import compiling
from neuron_agent.engine.sampling.grammar import MAX_GRAMMAR_BYTES, GrammarCompiler, Vocabulary
from neuron_agent.engine.sampling.row_state import RowState
from neuron_agent.protocol import ErrorCode
from neuron_agent.scheduling.scheduler import SchedulerLimits
from tests.neuron_agent.engine.workbench import GREEDY, PROMPTS, engine_over, run, submit, tokens
from tests.neuron_agent.tiny_model import build_tokenizer
from tests.neuron_agent.tiny_models import build_tiny

VOCABULARY_SIZE = 320  # more rows than the tokenizer has tokens
TOKENIZER = build_tokenizer()
END_ID = TOKENIZER.token_to_id("<|im_end|>")
STUCK = "stuck"

SCHEMAS: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    {
        "type": "array",
        "items": {"enum": ["red", "green", "blue"]},
        "minItems": 1,
        "maxItems": 3,
    },
    {"anyOf": [{"type": "boolean"}, {"type": "null"}, {"const": "maybe"}]},
    {"type": "string", "pattern": "^[a-c]{2}-[0-9]{3}$"},
    {
        "type": "object",
        "properties": {
            "inner": {
                "type": "object",
                "properties": {"ok": {"type": "boolean"}},
                "required": ["ok"],
                "additionalProperties": False,
            }
        },
        "required": ["inner"],
        "additionalProperties": False,
    },
]


def is_valid(number: int, value: Any) -> bool:
    """Whether a value is what schema `number` asks for, in plain words."""
    match number, value:
        case 0, {"name": str(name), "age": int(age), **rest}:
            return len(name) <= 6 and 0 <= age <= 120 and not rest
        case 1, list():
            return 1 <= len(value) <= 3 and set(value) <= {"red", "green", "blue"}
        case 2, _:
            return value in (True, False, None, "maybe")
        case 3, str():
            first, _, second = value.partition("-")
            return (len(first), len(second)) == (2, 3) and set(first) <= set("abc")
        case 4, {"inner": {"ok": bool(), **inner}, **rest}:
            return not inner and not rest
    return False


def grammar(schema: object) -> str:
    return LLMatcher.grammar_from_json_schema(
        json.dumps(schema), overrides={"whitespace_flexible": False}
    )


class Compiler:
    """The real one; the grammar `stuck` never ends."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.grammars = GrammarCompiler(
            lambda: Vocabulary(TOKENIZER.to_str(), (END_ID,)), self._compile
        )

    def _compile(self, tokenizer: LLTokenizer, text: str) -> LLMatcher:
        if text == STUCK:
            self.end.wait(60)
        return LLMatcher(tokenizer, text)


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    compiler = Compiler()
    yield compiler
    compiler.end.set()
    compiler.grammars.close()


@pytest.fixture
def new_engine(compiler: Compiler) -> Callable[..., Engine]:
    def build(**options: Any) -> Engine:
        forward = PackedForward(build_tiny("qwen3", VOCABULARY_SIZE), SlotCache())
        return engine_over(
            forward,
            max_in_flight=32,
            vocabulary_size=VOCABULARY_SIZE,
            grammars=compiler.grammars,
            clock=time.monotonic,  # a compilation takes real time
            **options,
        )

    return build


@pytest.fixture
def engine(new_engine: Callable[..., Engine]) -> Engine:
    return new_engine()


def asking(name: str, max_tokens: int = 12, **asked: Any) -> Submit:
    return msgspec.structs.replace(submit(name, PROMPTS[1], max_tokens), **asked)


def text_of(outputs: list[Output]) -> str:
    return TOKENIZER.decode(tokens(outputs), skip_special_tokens=False)


# --- grammars ----------------------------------------------------------------------------------


def test_two_hundred_random_texts_are_what_their_schemas_ask_for(engine: Engine) -> None:
    crowd = [
        asking(
            str(number),
            max_tokens=300,
            grammar=grammar(SCHEMAS[number % 5]),
            sampling=Sampling(temperature=1.5, seed=number),
            stop_ids=[END_ID],
        )
        for number in range(200)
    ]
    outputs = run(engine, *crowd)
    for number in range(200):
        assert outputs[str(number)][-1].finish == "stop"
        assert is_valid(number % 5, json.loads(text_of(outputs[str(number)])))
    assert len({text_of(one) for one in outputs.values()}) > 50


def test_a_finished_grammar_ends_a_text_that_no_token_may_end(engine: Engine) -> None:
    for asked in ({"stop_ids": []}, {"stop_ids": [END_ID], "min_tokens": 250}):
        outputs = run(engine, asking("a", 300, grammar=grammar(SCHEMAS[2]), **asked))["a"]
        assert outputs[-1].finish == "stop"
        assert is_valid(2, json.loads(text_of(outputs)))


def test_the_end_token_ends_what_the_grammar_lets_end(engine: Engine) -> None:
    favoured = Sampling(temperature=0.0, logit_bias={END_ID: 100.0})
    one = asking("a", 300, grammar=LLMatcher.grammar_from_lark('start: "a"{3,9}'), stop_ids=[])
    outputs = run(engine, msgspec.structs.replace(one, sampling=favoured))["a"]
    assert text_of(outputs) == "aaa"
    assert outputs[-1].finish == "stop"


def test_a_text_that_is_complete_with_its_last_token_has_stopped(engine: Engine) -> None:
    one = asking("a", 1, grammar=LLMatcher.grammar_from_lark('start: "a"'))
    outputs = run(engine, one)["a"]
    assert [output.finish for output in outputs] == ["stop"]


def test_a_text_cut_short_is_told_so(engine: Engine) -> None:
    outputs = run(engine, asking("a", 3, grammar=grammar(SCHEMAS[0])))["a"]
    assert outputs[-1].finish == "length"


def test_preempted_requests_keep_their_place_in_the_grammar(
    new_engine: Callable[..., Engine],
) -> None:
    engine = new_engine(kv_tokens=200, scheduling=SchedulerLimits(reserve_tokens=4))
    schema = {"type": "array", "items": {"enum": ["red"]}, "minItems": 20, "maxItems": 20}
    crowd = [
        asking(str(i), 150, grammar=grammar(schema), sampling=Sampling(seed=i)) for i in range(4)
    ]
    outputs = run(engine, *crowd)
    assert engine.report().preemptions > 0
    assert all(json.loads(text_of(one)) == ["red"] * 20 for one in outputs.values())


@pytest.mark.parametrize("wrong", ["hello {", '{"grammars": []}', grammar({"type": "nonsense"})])
def test_a_wrong_grammar_fails_its_request_alone(engine: Engine, wrong: str) -> None:
    outputs = run(engine, asking("bad", grammar=wrong), asking("good"))
    end = outputs["bad"][-1]
    assert (end.finish, end.error_code) == ("error", ErrorCode.INVALID_REQUEST)
    assert end.error is not None
    assert "grammar" in end.error
    assert outputs["good"][-1].finish == "length"


def test_a_grammar_that_leaves_no_token_fails_its_request_alone(engine: Engine) -> None:
    """It asks for a character that no token of this model begins with: its rows end before it."""
    forward = engine._forward
    compute = forward.compute
    forward.compute = lambda batch: _without(compute(batch), TOKENIZER.token_to_id("z"))  # type: ignore[method-assign]
    only_z = LLMatcher.grammar_from_lark('start: "z"')
    outputs = run(engine, asking("bad", grammar=only_z), asking("good"))
    end = outputs["bad"][-1]
    assert (end.finish, end.error_code) == ("error", ErrorCode.REQUEST_FAILED)
    assert end.error == "the grammar leaves no token"
    assert outputs["good"][-1].finish == "length"
    assert engine.report().nan_logits == 0


def _without(computed: Any, token_id: int) -> Any:
    computed.logits[:, token_id] = -math.inf
    return computed


def test_others_go_on_while_a_grammar_is_being_compiled(engine: Engine) -> None:
    engine.add(asking("stuck", grammar=STUCK))
    engine.add(asking("good"))
    outputs: list[Output] = []
    while not outputs or outputs[-1].finish is None:
        outputs += engine.step()
    assert {output.request_id for output in outputs} == {"good"}
    assert engine.has_work
    assert engine.report().waiting == 1
    assert engine.step() == []


def test_a_request_can_leave_while_its_grammar_is_compiled(engine: Engine) -> None:
    engine.add(asking("stuck", grammar=STUCK))
    output = engine.cancel("stuck")
    assert output is not None
    assert output.finish == "cancelled"
    assert not engine.has_work
    assert engine.cancel("stuck") is None


def test_a_compilation_that_does_not_end_fails_its_request(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "PATIENCE_SECONDS", 0.0)
    outputs = run(engine, asking("stuck", grammar=STUCK), asking("good"))
    assert outputs["stuck"][-1].error == "the grammar takes too long to compile"
    assert outputs["good"][-1].finish == "length"


def test_a_model_without_a_tokenizer_follows_no_grammar() -> None:
    engine = engine_over(PackedForward(build_tiny("qwen3"), SlotCache()))
    with pytest.raises(RequestRefused, match="tokenizer"):
        engine.add(asking("a", grammar=grammar({})))


# --- sampling ----------------------------------------------------------------------------------

EVERYTHING = Sampling(
    temperature=0.9,
    top_p=0.95,
    top_k=30,
    min_p=0.01,
    presence_penalty=0.5,
    frequency_penalty=0.3,
    repetition_penalty=1.1,
    logit_bias={5: 3.0, 9: -100.0},
    seed=42,
)


def full(name: str, **asked: Any) -> Submit:
    return asking(name, 30, **({"sampling": EVERYTHING, "num_logprobs": 3} | asked))


@pytest.mark.parametrize(
    "asked", [{}, {"grammar": grammar({"type": "string", "minLength": 20})}, {"min_tokens": 9}]
)
def test_the_same_seed_gives_the_same_text_in_any_crowd_whatever_is_asked_for(
    engine: Engine, asked: dict[str, Any]
) -> None:
    seeded = full("seeded", stop_ids=[END_ID], **asked)
    alone = tokens(run(engine, seeded)["seeded"])
    others = [full(str(i), grammar=grammar(SCHEMAS[i % 5])) for i in range(3)]
    others += [asking(str(i), 20, sampling=Sampling(temperature=2.0)) for i in range(3, 7)]
    engine.drop_prefixes()
    assert tokens(run(engine, *others[:4], seeded, *others[4:])["seeded"]) == alone


def test_a_biased_token_comes_always_or_never(engine: Engine) -> None:
    forced = Sampling(temperature=0.0, logit_bias={7: 100.0})
    assert tokens(run(engine, asking("a", sampling=forced))["a"]) == [7] * 12
    (best, *_) = tokens(run(engine, asking("a"))["a"])
    banned = Sampling(temperature=0.0, logit_bias={best: -100.0})
    assert best not in tokens(run(engine, asking("a", sampling=banned))["a"])


def test_penalties_look_back_at_what_was_generated(engine: Engine) -> None:
    """The token that always wins by 8 is beaten once its penalty has grown to that."""
    again = Sampling(temperature=0.0, logit_bias={7: 100.0}, frequency_penalty=2.0)
    outputs = run(engine, asking("a", 60, sampling=again), asking("b", 60, sampling=GREEDY))
    repeated = tokens(outputs["a"]).count(7)
    assert 30 < repeated < 60


def test_no_stop_token_comes_before_its_time(engine: Engine) -> None:
    forced = Sampling(temperature=0.0, logit_bias={END_ID: 100.0})
    one = asking("a", 30, sampling=forced, stop_ids=[END_ID, 10**9], min_tokens=5)
    outputs = run(engine, one)["a"]
    assert (len(tokens(outputs)), outputs[-1].finish, outputs[-1].num_generated) == (5, "stop", 6)


def test_logprobs_come_with_each_token_and_are_transformers_own(engine: Engine) -> None:
    asked = asking("a", 6, num_logprobs=4, sampling=Sampling(temperature=0.5, seed=3))
    outputs = run(engine, asked, full("other"))["a"]
    text = [*asked.prompt_ids]
    model = build_tiny("qwen3", VOCABULARY_SIZE)
    for output in outputs:
        with torch.no_grad():
            own = model(torch.tensor([text])).logits[0, -1].log_softmax(-1)
        assert output.logprobs is not None
        (found,) = output.logprobs
        assert found.logprob == pytest.approx(float(own[output.token_ids[0]]), abs=1e-4)
        assert [token for token, _ in found.top] == own.topk(4).indices.tolist()
        text += output.token_ids


def test_who_asks_for_no_logprobs_gets_none(engine: Engine) -> None:
    assert {output.logprobs for output in run(engine, asking("a"))["a"]} == {None}


def test_state_that_fails_ends_its_request_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(state: RowState, token_id: int) -> None:
        if state.num_logprobs is not None:
            raise ValueError("/home/somebody/secret")

    monkeypatch.setattr(RowState, "take", fail)
    outputs = run(engine, asking("bad", num_logprobs=0), asking("good"))
    end = outputs["bad"][-1]
    assert (end.finish, end.error_code) == ("error", ErrorCode.REQUEST_FAILED)
    assert "secret" not in str(end)
    assert outputs["good"][-1].finish == "length"


# --- embeddings --------------------------------------------------------------------------------


def test_an_embedding_is_the_last_hidden_state_at_length_one(engine: Engine) -> None:
    model = build_tiny("qwen3", VOCABULARY_SIZE)
    crowd = [embedding_of(name, prompt) for name, prompt in zip("abcd", PROMPTS[:4], strict=True)]
    outputs = run(engine, asking("text", 20), *crowd)
    for one in crowd:
        with torch.no_grad():
            hidden = model.model(torch.tensor([one.prompt_ids])).last_hidden_state[0, -1]
        end = outputs[one.request_id][-1]
        assert (end.finish, end.token_ids, end.num_generated) == ("stop", [], 0)
        assert end.embedding == pytest.approx((hidden / hidden.norm()).tolist(), abs=1e-5)
        assert end.prefill_done == len(one.prompt_ids)
    assert engine._rows == {}
    assert outputs["text"][-1].finish == "length"


def embedding_of(name: str, prompt: list[int]) -> Submit:
    return msgspec.structs.replace(submit(name, prompt), wants_embedding=True, max_tokens=0)


# --- prefixes ----------------------------------------------------------------------------------


def test_a_prompt_that_was_seen_is_not_computed_again(engine: Engine) -> None:
    prompt = PROMPTS[3]
    first = run(engine, submit("a", prompt))["a"]
    again = run(engine, submit("a", prompt))["a"]
    assert tokens(again) == tokens(first)
    cached = [output.cached_tokens for output in again if output.cached_tokens is not None]
    assert cached[0] > len(prompt) // 2
    assert 0 < engine.report().prefix_hit_ratio < 1
    engine.drop_prefixes()
    fresh = run(engine, submit("a", prompt))["a"]
    assert [one.cached_tokens for one in fresh if one.cached_tokens is not None] == [0]


# --- requests that are wrong -------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"sampling": Sampling(presence_penalty=3.0)},
        {"sampling": Sampling(frequency_penalty=math.nan)},
        {"sampling": Sampling(repetition_penalty=0.0)},
        {"sampling": Sampling(min_p=-1.0)},
        {"sampling": Sampling(logit_bias={VOCABULARY_SIZE: 1.0})},
        {"sampling": Sampling(logit_bias={-1: 1.0})},
        {"sampling": Sampling(logit_bias={1: math.inf})},
        {"num_logprobs": 21},
        {"num_logprobs": -1},
        {"min_tokens": -1},
        {"grammar": "x" * (MAX_GRAMMAR_BYTES + 1)},
        {"grammar": grammar({}), "wants_embedding": True},
    ],
)
def test_nonsense_is_refused_alone(engine: Engine, wrong: dict[str, Any]) -> None:
    engine.add(asking("good"))
    with pytest.raises(RequestRefused) as caught:
        engine.add(asking("bad", **wrong))
    assert caught.value.code == ErrorCode.INVALID_REQUEST
    assert {output.request_id for output in engine.step()} == {"good"}
