"""What a request adds to the counts, and that no client can add labels."""

from datetime import UTC, datetime

from prometheus_client import REGISTRY

from inference import metrics
from inference.models import RequestRecord


def a_record(**changes: object) -> RequestRecord:
    columns: dict[str, object] = {
        "request_id": "r",
        "at": datetime(2026, 1, 1, tzinfo=UTC),
        "model": "org/counted",
        "requested_model": "org/counted",
        "neuron": "beast",
        "dialect": "chat",
        "status": 200,
        "streaming": True,
        "latency_seconds": 2.0,
        "ttft_seconds": 0.5,
        "tokens_per_second": 50.0,
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "cached_tokens": 3,
        "cold_start": True,
    }
    return RequestRecord(**{**columns, **changes})


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_request_is_counted_with_its_tokens_and_times() -> None:
    names = {
        "cortex_request_duration_seconds_sum": 2.0,
        "cortex_time_to_first_token_seconds_sum": 0.5,
        "cortex_inter_token_latency_seconds_sum": 0.02,
        "cortex_tokens_per_second_sum": 50.0,
        "cortex_prompt_tokens_total": 7.0,
        "cortex_completion_tokens_total": 5.0,
        "cortex_cached_prompt_tokens_total": 3.0,
        "cortex_cold_starts_total": 1.0,
    }
    before = {name: value(name, model="org/counted") for name in names}
    metrics.observe(a_record())
    added = {name: value(name, model="org/counted") - before[name] for name in names}
    assert added == names
    labels = {"model": "org/counted", "neuron": "beast", "dialect": "chat", "status": "200"}
    assert value("cortex_requests_total", **labels) >= 1


def test_a_name_that_is_no_model_becomes_no_label() -> None:
    metrics.observe(a_record(model="", neuron="", requested_model="x" * 100, status=404))
    labels = {
        sample.labels.get("model") for metric in REGISTRY.collect() for sample in metric.samples
    }
    assert "x" * 100 not in labels
    assert value("cortex_requests_total", model="", neuron="", dialect="chat", status="404") >= 1


def test_rejections_are_counted_by_reasons_that_no_neuron_can_add_to() -> None:
    for code, reason in (("saturated", "saturated"), ("made-up", "other")):
        before = value("cortex_rejections_total", reason=reason)
        metrics.observe(a_record(status=503, error_code=code))
        metrics.observe(a_record(status=400, error_code=code))
        assert value("cortex_rejections_total", reason=reason) == before + 1
