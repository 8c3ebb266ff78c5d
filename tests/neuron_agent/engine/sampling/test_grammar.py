import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from llguidance import LLMatcher, LLTokenizer

from neuron_agent.engine.sampling.grammar import (
    MAX_GRAMMAR_BYTES,
    MAX_LOST_WORKERS,
    NUM_WORKERS,
    Compiled,
    GrammarCompiler,
    GrammarRefused,
    Matcher,
    Vocabulary,
    masks_for,
    read_vocabulary,
)
from tests.neuron_agent.tiny_model import build_tokenizer, write_model

PATIENCE_SECONDS = 30.0
TOKENIZER = build_tokenizer()
END_ID = TOKENIZER.token_to_id("<|im_end|>")
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}


def vocabulary() -> Vocabulary:
    return Vocabulary(TOKENIZER.to_str(), (END_ID,))


def grammar(schema: object) -> str:
    return LLMatcher.grammar_from_json_schema(
        json.dumps(schema), overrides={"whitespace_flexible": False}
    )


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)


@pytest.fixture
def compiler() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(vocabulary)
    yield compiler
    compiler.close()


def compiled(compiler: GrammarCompiler, text: str) -> Matcher:
    return compiler.start(text).result(PATIENCE_SECONDS).new_matcher()


def allowed(matcher: Matcher, size: int = 320) -> set[int]:
    masks = masks_for([(0, matcher)], size)
    assert masks is not None
    words = masks.bits[0].tolist()
    return {token for token in range(32 * len(words)) if words[token // 32] >> token % 32 & 1}


def spell(matcher: Matcher, text: str) -> None:
    for token_id in TOKENIZER.encode(text).ids:
        assert token_id in allowed(matcher)
        assert matcher.take(token_id)


# --- matching ----------------------------------------------------------------------------------


def test_a_matcher_follows_a_text_to_its_end(compiler: GrammarCompiler) -> None:
    matcher = compiled(compiler, grammar(SCHEMA))
    assert END_ID not in allowed(matcher)
    spell(matcher, '{"n":-1')
    assert not matcher.is_finished
    spell(matcher, "}")
    assert matcher.is_finished
    assert matcher.error is None


def test_the_end_may_come_when_the_grammar_is_satisfied(compiler: GrammarCompiler) -> None:
    matcher = compiled(compiler, LLMatcher.grammar_from_lark('start: "a"+'))
    assert END_ID not in allowed(matcher)
    spell(matcher, "aa")
    assert END_ID in allowed(matcher)
    assert not matcher.is_finished
    assert matcher.take(END_ID)
    assert matcher.is_finished
    assert matcher.stop_ids == {END_ID}


def test_a_token_outside_the_grammar_is_not_taken(compiler: GrammarCompiler) -> None:
    matcher = compiled(compiler, grammar(SCHEMA))
    assert not matcher.take(TOKENIZER.token_to_id("x"))
    assert matcher.error is not None
    assert allowed(matcher) == set()


def test_each_request_has_its_own_place_in_one_grammar(compiler: GrammarCompiler) -> None:
    first, second = (compiled(compiler, grammar(SCHEMA)) for _ in range(2))
    before = allowed(second)
    spell(first, '{"n":7}')
    assert allowed(second) == before
    assert not second.is_finished


@pytest.mark.parametrize("size", [64, TOKENIZER.get_vocab_size(), 1000])
def test_a_model_may_have_more_rows_than_tokens_or_fewer(
    compiler: GrammarCompiler, size: int
) -> None:
    matcher = compiled(compiler, grammar({"type": "string"}))
    masks = masks_for([(0, matcher), (3, matcher)], size)
    assert masks is not None
    assert list(masks.rows) == [0, 3]
    assert 32 * masks.bits.shape[1] >= size
    assert torch.equal(masks.bits[0], masks.bits[1])
    assert max(allowed(matcher, size)) < TOKENIZER.get_vocab_size()


def test_without_matchers_there_are_no_masks() -> None:
    assert masks_for([], 100) is None


def test_a_vocabulary_is_read_from_a_model_folder(tmp_path: Path) -> None:
    read = read_vocabulary(write_model(tmp_path))
    assert read.stop_ids == (END_ID,)
    assert json.loads(read.tokenizer_json) == json.loads(TOKENIZER.to_str())


# --- compiling ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "hello {",
        '{"grammars": []}',
        grammar({"type": "string", "pattern": "(" * 300 + "a" + ")" * 300}),
        grammar({"type": "nonsense"}),
        LLMatcher.grammar_from_regex("(?=a)b"),
    ],
)
def test_a_grammar_that_is_none_is_refused(compiler: GrammarCompiler, wrong: str) -> None:
    with pytest.raises(GrammarRefused):
        compiler.start(wrong).result(PATIENCE_SECONDS)
    assert compiled(compiler, grammar(SCHEMA)).error is None


def test_an_enormous_grammar_is_refused_at_once(compiler: GrammarCompiler) -> None:
    with pytest.raises(GrammarRefused, match="longer"):
        compiler.start("x" * (MAX_GRAMMAR_BYTES + 1))


@pytest.mark.parametrize(
    "schema",
    [
        # It follows references by calling itself: an ordinary stack would end the process.
        {
            "$defs": {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(4000)}
            | {"a4000": {"type": "string"}},
            "$ref": "#/$defs/a0",
        },
        {"type": "string", "pattern": "^((a{1,1000}){1,1000}){1,1000}$"},
        {"type": "string", "pattern": "^(a+)+$"},
        {"properties": {f"name{i}": {"pattern": f"[a-z]{{1,{i}}}"} for i in range(1, 700)}},
        {"allOf": [{"type": "string", "pattern": f"(.*[a-z].*){{{i}}}"} for i in range(2, 12)]},
        {
            "allOf": [
                {"anyOf": [{"properties": {f"{name}{i}": {"const": 1}}} for name in "ab"]}
                for i in range(20)
            ]
        },
    ],
)
def test_a_grammar_made_to_explode_ends_soon_in_one_way_or_the_other(
    compiler: GrammarCompiler, schema: object
) -> None:
    error = compiler.start(grammar(schema)).exception(PATIENCE_SECONDS)
    assert error is None or isinstance(error, GrammarRefused)
    if error is None:
        assert allowed(compiled(compiler, grammar(schema)))


def test_the_same_grammar_is_compiled_once() -> None:
    num_compiled = 0

    def count(tokenizer: LLTokenizer, text: str) -> LLMatcher:
        nonlocal num_compiled
        num_compiled += 1
        return LLMatcher(tokenizer, text)

    compiler = GrammarCompiler(vocabulary, count)
    for _ in range(3):
        compiled(compiler, grammar(SCHEMA))
    compiler.close()
    assert num_compiled == 1


def test_a_vocabulary_that_cannot_be_read_fails_every_grammar() -> None:
    def broken() -> Vocabulary:
        raise OSError("no such file")

    compiler = GrammarCompiler(broken)
    for text in (grammar(SCHEMA), grammar({"type": "string"})):
        with pytest.raises(OSError, match="no such file"):
            compiler.start(text).result(PATIENCE_SECONDS)
    compiler.close()


class Stuck:
    """Compiles as always, but grammars that begin with `stuck` wait for the end of the test."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.compiler = GrammarCompiler(vocabulary, self._compile)

    def _compile(self, tokenizer: LLTokenizer, text: str) -> LLMatcher:
        if text.startswith("stuck"):
            assert self.end.wait(PATIENCE_SECONDS)
        return LLMatcher(tokenizer, text)

    def start(self, *names: str) -> list["Future[Compiled]"]:
        return [self.compiler.start(f"stuck {name}") for name in names]

    def give_up_all(self, *names: str) -> None:
        for name in names:
            self.compiler.give_up(f"stuck {name}")


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    stuck = Stuck()
    yield stuck
    stuck.end.set()
    stuck.compiler.close()


def test_stuck_compilations_that_are_given_up_hold_nobody_up(stuck: Stuck) -> None:
    names = [str(number) for number in range(NUM_WORKERS)]
    for result in stuck.start(*names):
        until(result.running)
    waiting = stuck.compiler.start(grammar(SCHEMA))
    assert not waiting.done()
    stuck.give_up_all(*names)
    assert waiting.result(PATIENCE_SECONDS).new_matcher().error is None


def test_there_is_an_end_to_stuck_compilations(stuck: Stuck) -> None:
    for number in range(MAX_LOST_WORKERS):
        (result,) = stuck.start(str(number))
        until(result.running)
        stuck.give_up_all(str(number))
    with pytest.raises(GrammarRefused, match="too many"):
        stuck.start("one more")
    stuck.end.set()


def test_a_compilation_given_up_before_it_began_never_begins(stuck: Stuck) -> None:
    names = [str(number) for number in range(NUM_WORKERS + 1)]
    *running, waiting = stuck.start(*names)
    for result in running:
        until(result.running)
    stuck.give_up_all(names[-1])
    assert waiting.cancelled()
