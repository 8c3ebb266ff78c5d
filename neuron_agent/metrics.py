"""`GET /metrics`: the supervisor's state as Prometheus text, collected when asked for.

Nothing is counted here: a scrape reads what models and devices hold anyway.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from neuron_agent.supervisor import Supervisor


def render_metrics(supervisor: Supervisor) -> bytes:
    """Return one scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_SupervisorCollector(supervisor))
    return generate_latest(registry)


class _SupervisorCollector(Collector):
    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def collect(self) -> Iterator[Metric]:
        yield from self._requests()
        yield from self._engine()
        yield from self._devices()

    def _requests(self) -> Iterator[Metric]:
        running = _gauge("neuron_requests_running", "Requests in the batch.", "model")
        waiting = _gauge("neuron_requests_waiting", "Requests that wait for the batch.", "model")
        prompt = _counter("neuron_prompt_tokens", "Prompt tokens of ended requests.", "model")
        completion = _counter("neuron_completion_tokens", "Tokens generated.", "model")
        rejected = _counter("neuron_rejections", "Requests turned away.", "model", "reason")
        for model in self._supervisor.models.values():
            report = model.report
            running.add_metric([model.id], report.running if report else 0)
            waiting.add_metric([model.id], report.waiting if report else 0)
            prompt.add_metric([model.id], model.prompt_tokens_total)
            completion.add_metric([model.id], model.completion_tokens_total)
            for reason, count in model.rejected.items():
                rejected.add_metric([model.id, reason], count)
        yield from (running, waiting, prompt, completion, rejected)

    def _engine(self) -> Iterator[Metric]:
        kv = _gauge("neuron_kv_cache_usage_ratio", "Share of the KV cache in use.", "model")
        hits = _gauge("neuron_prefix_cache_hit_ratio", "Prompt tokens found cached.", "model")
        step = _gauge("neuron_step_seconds", "Mean time of a step.", "model", "phase")
        preempted = _counter("neuron_preemptions", "Requests put back to wait.", "model")
        nan = _counter("neuron_nan_logits", "Requests failed by logits not numbers.", "model")
        for model in self._supervisor.models.values():
            report = model.report
            if report is None:
                continue
            kv.add_metric([model.id], report.kv_used_ratio)
            hits.add_metric([model.id], report.prefix_hit_ratio)
            step.add_metric([model.id, "prefill"], report.step_seconds_prefill)
            step.add_metric([model.id, "decode"], report.step_seconds_decode)
            preempted.add_metric([model.id], report.preemptions)
            nan.add_metric([model.id], report.nan_logits)
        yield from (kv, hits, step, preempted, nan)

    def _devices(self) -> Iterator[Metric]:
        used = _gauge("neuron_device_memory_used_bytes", "Memory in use.", "device")
        free = _gauge("neuron_device_memory_free_bytes", "Memory for models.", "device")
        poisoned = _gauge("neuron_device_poisoned", "1 while it cannot be trusted.", "device")
        up = _gauge("neuron_device_up", "1 while its process serves.", "device")
        faults = _counter("neuron_device_faults", "Lines of the fault ledger.", "device", "kind")
        for device in self._supervisor.devices:
            name, health = device.spec.torch_name, device.health()
            report = device.report
            used.add_metric([name], report.memory_used_bytes if report else 0)
            free.add_metric([name], report.memory_free_bytes if report else 0)
            poisoned.add_metric([name], health.poisoned)
            up.add_metric([name], device.started is not None)
            for kind, count in device.num_faults.items():
                faults.add_metric([name, kind], count)
        yield from (used, free, poisoned, up, faults)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, labels=labels)
