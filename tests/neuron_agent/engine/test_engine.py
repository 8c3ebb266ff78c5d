import math
from collections.abc import Callable
from pathlib import Path

import pytest

from neuron_agent.devices.channel import Output, Sampling, Submit
from neuron_agent.engine.engine import Engine
from neuron_agent.engine.forwards.forward import Computed, PackedForward, SequenceFailed
from neuron_agent.engine.forwards.slot_cache import SlotCache
from neuron_agent.engine.refusals import RequestRefused
from neuron_agent.protocol import ErrorCode
from neuron_agent.scheduling.batch import Batch
from neuron_agent.scheduling.pool import KvLayout
from neuron_agent.scheduling.scheduler import SchedulerLimits
from tests.neuron_agent.engine.workbench import (
    CROWD,
    GREEDY,
    PROMPTS,
    engine_over,
    load,
    reference,
    run,
    submit,
    tokens,
)
from tests.neuron_agent.tiny_models import CONTEXT_TOKENS, VOCABULARY_SIZE, build_tiny

WARM = Sampling(temperature=0.9, top_p=0.95, seed=42)


class FlakyForward:
    """A real forward with knobs: fail some calls, or spoil the logits of some requests."""

    is_slow_lane = False
    layout = KvLayout.SLOTS
    block_tokens = 1

    def __init__(self) -> None:
        self.cache = SlotCache()
        self.inner = PackedForward(build_tiny("qwen3"), self.cache)
        self.num_failures = 0
        self.culprit: str | None = None
        self.spoilt: set[str] = set()

    def compute(self, batch: Batch) -> Computed:
        computed = self.inner.compute(batch)
        if self.num_failures:
            self.num_failures -= 1
            raise SequenceFailed(self.culprit) if self.culprit else ValueError("failed")
        for row, chunk in enumerate(batch.sampled):
            if chunk.request_id in self.spoilt:
                computed.logits[row] = math.nan
        for row, chunk in enumerate(batch.embedded):
            if chunk.request_id in self.spoilt:
                computed.hidden[row] = math.nan
        return computed

    def reserve(self, kv_tokens: int) -> None:
        self.inner.reserve(kv_tokens)

    def warm_up(self, max_in_flight: int) -> None:
        self.inner.warm_up(max_in_flight)

    def release(self, slot: int) -> None:
        self.inner.release(slot)

    def close(self) -> None:
        self.inner.close()


@pytest.fixture
def flaky() -> FlakyForward:
    return FlakyForward()


@pytest.fixture
def flaky_engine(flaky: FlakyForward) -> Engine:
    return engine_over(flaky)


# --- equal output ------------------------------------------------------------------------------


KINDS = [
    ("qwen3", False),
    pytest.param("llama", False, marks=pytest.mark.slow),
    pytest.param("mistral", False, marks=pytest.mark.slow),
    pytest.param("gemma3", False, marks=pytest.mark.slow),
    pytest.param("lfm2", True, marks=pytest.mark.slow),
    ("mamba", True),
]


@pytest.mark.parametrize(("kind", "is_slow_lane"), KINDS)
def test_greedy_output_of_32_in_a_crowd_is_that_of_generate(
    tiny_folder: Callable[[str], Path], kind: str, is_slow_lane: bool
) -> None:
    engine = load(tiny_folder(kind))
    assert engine.is_slow_lane is is_slow_lane
    crowd = [submit(str(i), prompt, number) for i, (prompt, number) in enumerate(CROWD)]
    together = run(engine, *crowd)
    for one in crowd:
        expected = reference(kind, tuple(one.prompt_ids), one.max_tokens)
        assert tokens(together[one.request_id]) == expected
        assert tokens(run(engine, one)[one.request_id]) == expected


def test_requests_that_join_midway_change_nothing(engine: Engine) -> None:
    late = [submit(str(i), prompt) for i, prompt in enumerate(PROMPTS)]
    outputs: dict[str, list[int]] = {one.request_id: [] for one in late}
    while late or engine.has_work:
        if late:
            engine.add(late.pop(0))
        for output in engine.step():
            outputs[output.request_id] += output.token_ids
    for i, prompt in enumerate(PROMPTS):
        assert outputs[str(i)] == reference("qwen3", tuple(prompt), 12)


def test_a_full_cache_changes_nothing() -> None:
    engine = engine_over(
        PackedForward(build_tiny("qwen3"), SlotCache()),
        kv_tokens=CONTEXT_TOKENS,
        scheduling=SchedulerLimits(reserve_tokens=4),
    )
    prompt = PROMPTS[2]
    crowd = [submit(str(i), prompt[i:], 150) for i in range(5)]
    together = run(engine, *crowd)
    assert engine.report().preemptions > 0
    for one in crowd:
        assert tokens(together[one.request_id]) == reference("qwen3", tuple(one.prompt_ids), 150)
        firsts = [o for o in together[one.request_id] if o.queue_ms is not None]
        assert len(firsts) == 1, "a request that is computed again has no second first token"


def test_the_same_seed_gives_the_same_text_alone_and_in_a_crowd(engine: Engine) -> None:
    seeded = submit("seeded", PROMPTS[1], 30, WARM)
    alone = tokens(run(engine, seeded)["seeded"])
    crowd = [submit(str(i), p, 20, Sampling(temperature=1.5)) for i, p in enumerate(PROMPTS)]
    assert tokens(run(engine, *crowd[:3], seeded, *crowd[3:])["seeded"]) == alone
    other = submit("seeded", PROMPTS[1], 30, Sampling(temperature=0.9, top_p=0.95, seed=43))
    assert tokens(run(engine, other)["seeded"]) != alone


def test_unseeded_requests_differ(engine: Engine) -> None:
    hot = Sampling(temperature=1.5)
    outputs = run(engine, *(submit(str(i), PROMPTS[1], 20, hot) for i in range(4)))
    assert len({tuple(tokens(one)) for one in outputs.values()}) == 4


# --- ends --------------------------------------------------------------------------------------


def test_a_stop_token_ends_and_is_left_out(engine: Engine) -> None:
    expected = reference("qwen3", tuple(PROMPTS[1]), 12)
    stop = expected[4]
    outputs = run(engine, submit("a", PROMPTS[1], stop_ids=[stop, 10**9]))["a"]
    cut = expected.index(stop)
    assert tokens(outputs) == expected[:cut]
    assert (outputs[-1].finish, outputs[-1].num_generated) == ("stop", cut + 1)


def test_max_tokens_ends_as_length(engine: Engine) -> None:
    outputs = run(engine, submit("a", PROMPTS[1], 3))["a"]
    assert (len(tokens(outputs)), outputs[-1].finish, outputs[-1].num_generated) == (3, "length", 3)


def test_max_tokens_is_clipped_to_the_context(engine: Engine) -> None:
    prompt = [1] * (CONTEXT_TOKENS - 3)
    outputs = run(engine, submit("a", prompt, 1000))["a"]
    assert len(tokens(outputs)) == 3
    assert outputs[-1].finish == "length"


def test_prefill_tells_its_progress_and_the_first_token_its_times(engine: Engine) -> None:
    outputs = run(engine, submit("a", PROMPTS[3], 2))["a"]
    assert [output.prefill_done for output in outputs] == [256, 290, None]
    first = outputs[1]
    assert first.cached_tokens == 0
    assert first.queue_ms is not None
    assert first.prefill_ms is not None
    assert first.queue_ms >= 0 < first.prefill_ms
    assert outputs[0].queue_ms is outputs[2].queue_ms is None


def test_a_cancelled_request_is_gone_with_its_memory(flaky: FlakyForward) -> None:
    """What it shared with nobody stays for the next prompt alike, until memory is wanted."""
    engine = engine_over(flaky)
    engine.add(submit("a", PROMPTS[2], 100))
    engine.add(submit("b", PROMPTS[1], 100))
    engine.step()
    assert flaky.cache.num_slots == 2
    output = engine.cancel("a")
    assert output is not None
    assert (output.finish, output.num_generated) == ("cancelled", 1)
    engine.drop_prefixes()
    assert flaky.cache.num_slots == 1
    assert {one.request_id for one in engine.step()} == {"b"}
    assert engine.cancel("a") is None
    engine.check_integrity()


def test_only_prefixes_are_kept_of_requests_that_ended(flaky: FlakyForward) -> None:
    engine = engine_over(flaky)
    run(engine, *(submit(str(i), prompt) for i, prompt in enumerate(PROMPTS)))
    assert flaky.cache.allocated_bytes > 0
    engine.drop_prefixes()
    assert flaky.cache.allocated_bytes == 0
    assert engine._rows == {}
    assert engine.report().kv_used_ratio == 0


# --- requests that are wrong -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (submit("a", []), ErrorCode.INVALID_REQUEST),
        (submit("a", [1], max_tokens=0), ErrorCode.INVALID_REQUEST),
        (submit("a", [1, VOCABULARY_SIZE]), ErrorCode.INVALID_REQUEST),
        (submit("a", [-1]), ErrorCode.INVALID_REQUEST),
        (submit("a", [1], sampling=Sampling(temperature=-1)), ErrorCode.INVALID_REQUEST),
        (submit("a", [1], sampling=Sampling(top_p=-0.1)), ErrorCode.INVALID_REQUEST),
        (submit("a", [1] * CONTEXT_TOKENS), ErrorCode.CONTEXT_LENGTH_EXCEEDED),
    ],
)
def test_a_wrong_request_is_refused_alone(engine: Engine, wrong: Submit, code: ErrorCode) -> None:
    good = submit("good", PROMPTS[1])
    engine.add(good)
    with pytest.raises(RequestRefused) as caught:
        engine.add(wrong)
    assert caught.value.code == code
    assert tokens(_finish(engine)) == reference("qwen3", tuple(PROMPTS[1]), 12)


def _finish(engine: Engine) -> list[Output]:
    outputs: list[Output] = []
    while engine.has_work:
        outputs += engine.step()
    return outputs


# --- steps that fail ---------------------------------------------------------------------------


def test_a_failed_step_can_be_repeated(flaky: FlakyForward, flaky_engine: Engine) -> None:
    flaky_engine.add(submit("a", PROMPTS[3]))
    flaky_engine.add(submit("b", PROMPTS[1]))
    outputs: dict[str, list[int]] = {"a": [], "b": []}
    while flaky_engine.has_work:
        flaky.num_failures = 1
        with pytest.raises(ValueError, match="failed"):
            flaky_engine.step()
        for output in flaky_engine.step():
            outputs[output.request_id] += output.token_ids
    assert outputs["a"] == reference("qwen3", tuple(PROMPTS[3]), 12)
    assert outputs["b"] == reference("qwen3", tuple(PROMPTS[1]), 12)


@pytest.mark.parametrize(("culprit", "given_up"), [(None, "c"), ("a", "a")])
def test_the_culprit_or_else_the_youngest_is_given_up(
    flaky: FlakyForward, flaky_engine: Engine, culprit: str | None, given_up: str
) -> None:
    for name in "abc":
        flaky_engine.add(submit(name, PROMPTS[1]))
    flaky.num_failures, flaky.culprit = 1, culprit
    with pytest.raises((ValueError, SequenceFailed)):
        flaky_engine.step()
    output = flaky_engine.give_up_one(ErrorCode.REQUEST_FAILED, "sorry")
    assert output is not None
    assert (output.request_id, output.finish, output.error) == (given_up, "error", "sorry")
    left = {output.request_id for output in _finish(flaky_engine)}
    assert left == {"a", "b", "c"} - {given_up}


def test_without_a_step_there_is_nobody_to_give_up(engine: Engine) -> None:
    _finish(engine)
    engine.step()
    assert engine.give_up_one(ErrorCode.REQUEST_FAILED, "sorry") is None


def test_nan_logits_fail_their_request_and_are_counted(
    flaky: FlakyForward, flaky_engine: Engine
) -> None:
    flaky.spoilt = {"bad"}
    outputs = run(flaky_engine, submit("good", PROMPTS[1]), submit("bad", PROMPTS[2]))
    end = outputs["bad"][-1]
    assert (end.finish, end.error_code) == ("error", ErrorCode.REQUEST_FAILED)
    assert tokens(outputs["good"]) == reference("qwen3", tuple(PROMPTS[1]), 12)
    assert flaky_engine.report().nan_logits == 1


# --- reports -----------------------------------------------------------------------------------


def test_a_report_counts_what_runs_and_waits() -> None:
    engine = engine_over(PackedForward(build_tiny("qwen3"), SlotCache()), max_in_flight=2)
    for name in "abc":
        engine.add(submit(name, PROMPTS[1], sampling=GREEDY))
    engine.step()
    report = engine.report()
    assert (report.running, report.waiting) == (2, 1)
    assert report.kv_used_ratio > 0
    assert report.tok_s_prefill > 0
    assert report.step_seconds_prefill > 0
