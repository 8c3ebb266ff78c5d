"""What the control plane counts for Prometheus: loads as they are seen, unloads as they begin."""

from prometheus_client import Counter, Histogram

_LOAD_BUCKETS = (0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)

_evictions = Counter("cortex_evictions", "Unloads begun, by why", ["reason"])
_load_seconds = Histogram(
    "cortex_load_seconds",
    "From a load's order to the canary token",
    ["model"],
    buckets=_LOAD_BUCKETS,
)


def count_unload(reason: str) -> None:
    _evictions.labels(reason).inc()


def observe_load(model_id: str, seconds: float) -> None:
    _load_seconds.labels(model_id).observe(seconds)
