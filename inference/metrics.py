"""What a gateway counts for Prometheus. Scraped from another process, in multiprocess mode.

Observed once a request, at its end, never per chunk. Labels are bounded: only names from the
catalogue become labels. Children are looked up once and kept.
"""

from functools import cache

from prometheus_client import Counter, Histogram

from inference.models import RequestRecord
from inference.wire.errors import UNAVAILABLE
from neuron_agent.protocol import ErrorCode

_TTFT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_DURATION_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
_RATE_BUCKETS = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500)
_GAP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2)

_requests = Counter(
    "cortex_requests",
    "Requests by how they ended; 499: the client left",
    ["model", "neuron", "dialect", "status"],
)
_duration = Histogram(
    "cortex_request_duration_seconds", "Arrival to last byte", ["model"], buckets=_DURATION_BUCKETS
)
_ttft = Histogram(
    "cortex_time_to_first_token_seconds",
    "Arrival to first token of a stream, queueing and load included",
    ["model"],
    buckets=_TTFT_BUCKETS,
)
_gap = Histogram(
    "cortex_inter_token_latency_seconds",
    "Mean gap between two tokens of a stream",
    ["model"],
    buckets=_GAP_BUCKETS,
)
_rate = Histogram(
    "cortex_tokens_per_second",
    "Output tokens of a request by the time they took",
    ["model"],
    buckets=_RATE_BUCKETS,
)
_prompt_tokens = Counter("cortex_prompt_tokens", "Prompt tokens, cached ones included", ["model"])
_completion_tokens = Counter("cortex_completion_tokens", "Output tokens", ["model"])
_cached_tokens = Counter(
    "cortex_cached_prompt_tokens", "Prompt tokens found in a neuron's cache", ["model"]
)
_cold_starts = Counter("cortex_cold_starts", "Requests that waited for a load", ["model"])
_rejections = Counter(
    "cortex_rejections", "Requests not served for lack of room or of a model", ["reason"]
)
_lost_records = Counter("cortex_lost_records", "Request records dropped: the database was away")


_REJECTED = frozenset({429, 503})
_REASONS = frozenset({*ErrorCode, *(error.code for error in UNAVAILABLE)})


class _ModelMetrics:
    """The children of one model."""

    def __init__(self, model: str) -> None:
        self.duration = _duration.labels(model)
        self.ttft = _ttft.labels(model)
        self.gap = _gap.labels(model)
        self.rate = _rate.labels(model)
        self.prompt_tokens = _prompt_tokens.labels(model)
        self.completion_tokens = _completion_tokens.labels(model)
        self.cached_tokens = _cached_tokens.labels(model)
        self.cold_starts = _cold_starts.labels(model)


_of_model = cache(_ModelMetrics)
_requests_child = cache(_requests.labels)
_rejections_child = cache(_rejections.labels)


def count_lost_records(num_records: int) -> None:
    _lost_records.inc(num_records)


def observe(record: RequestRecord) -> None:
    """Count a request that has ended. One without a model of the catalogue has no other label."""
    _requests_child(record.model, record.neuron, record.dialect, str(record.status)).inc()
    if record.status in _REJECTED:
        is_known = record.error_code in _REASONS
        _rejections_child(record.error_code if is_known else "other").inc()
    if not record.model:
        return
    of_model = _of_model(record.model)
    of_model.duration.observe(record.latency_seconds)
    if record.cold_start:
        of_model.cold_starts.inc()
    if record.ttft_seconds is not None and record.streaming:
        of_model.ttft.observe(record.ttft_seconds)
    if record.tokens_per_second is not None:
        of_model.rate.observe(record.tokens_per_second)
        if record.streaming and record.tokens_per_second > 0:
            of_model.gap.observe(1 / record.tokens_per_second)
    if record.prompt_tokens is not None:
        of_model.prompt_tokens.inc(record.prompt_tokens)
        of_model.completion_tokens.inc(record.completion_tokens or 0)
        of_model.cached_tokens.inc(record.cached_tokens or 0)
