from neuron_agent.engine.speed import SpeedMeter
from neuron_agent.scheduling.batch import Batch, Chunk


def chunk(num_tokens: int, is_decode: bool = False, is_sampled: bool = True) -> Chunk:
    return Chunk("r", 0, 0, (0,) * num_tokens, 100, is_decode, is_sampled)


DECODE = Batch((chunk(1, is_decode=True), chunk(1, is_decode=True)))
MIXED = Batch((chunk(1, is_decode=True), chunk(10, is_sampled=False)))


def test_rates_are_tokens_by_the_time_since_the_last_reading() -> None:
    meter = SpeedMeter(now=10.0)
    meter.count(DECODE, 0.5)
    meter.count(MIXED, 0.5)
    rates = meter.take(now=12.0)
    assert (rates.prefill_tokens_per_second, rates.decode_tokens_per_second) == (5.0, 1.5)
    assert meter.take(now=13.0).decode_tokens_per_second == 0


def test_steps_are_timed_apart_by_whether_they_prefill() -> None:
    meter = SpeedMeter(now=0.0)
    meter.count(DECODE, 2.0)
    meter.count(MIXED, 4.0)
    rates = meter.take(now=1.0)
    assert (rates.decode_step_seconds, rates.prefill_step_seconds) == (2.0, 4.0)
    meter.count(DECODE, 12.0)
    assert 2.0 < meter.take(now=2.0).decode_step_seconds < 12.0


def test_a_reading_without_time_passing_is_no_division_by_zero() -> None:
    meter = SpeedMeter(now=1.0)
    meter.count(DECODE, 0.0)
    assert meter.take(now=1.0).decode_tokens_per_second == 0
