"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from m1agent.messages import Usage

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._requests = self._counter("requests", "Requests answered, by path and status.", "path", "status")
        self._seconds = self._histogram("request_seconds", "From a request's head to the end of its answer.", "path")
        self._first = self._histogram("first_token_seconds", "From a request's head to the first token.")
        self._tokens = self._counter("tokens", "Tokens: prompt, of it cached, completion, of it forced.", "kind")
        self._left = self._counter("disconnects", "Requests whose client left before the end of the answer.")

    def answered(self, path: str, status: int, seconds: float) -> None:
        """A request has ended."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def began(self, seconds: float) -> None:
        """The first token of an answer is there."""
        self._first.observe(seconds)

    def left(self) -> None:
        """A client did not wait for the end."""
        self._left.inc()

    def used(self, usage: Usage) -> None:
        """Tokens of one answer."""
        kinds = {
            "prompt": usage.input_tokens,
            "cached": usage.reused_tokens,
            "completion": usage.output_tokens,
            "forced": usage.forced_tokens,
        }
        for kind, count in kinds.items():
            self._tokens.labels(kind).inc(count)

    def watch(self, name: str, help: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(f"m1agent_{name}", help, registry=self._registry).set_function(value)

    def page(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"m1agent_{name}", help, labels, registry=self._registry)

    def _histogram(self, name: str, help: str, *labels: str) -> Histogram:
        return Histogram(f"m1agent_{name}", help, labels, registry=self._registry, buckets=SECONDS)
