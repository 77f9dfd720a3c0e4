"""What Prometheus sees of taskmix, beside vLLM's own `vllm:` metrics."""

from collections.abc import Callable

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge


class Metrics:
    """Every metric of this server. No label grows with ad-hoc mixes."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.requests = Counter(
            "taskmix_requests",
            "Generation requests by edge and outcome (ok, or the error's name).",
            ["edge", "outcome"],
            registry=registry,
        )
        self.running = Gauge(
            "taskmix_requests_running", "Requests being run by the engine.", registry=registry
        )
        self.waiting = Gauge(
            "taskmix_requests_waiting", "Requests waiting in the engine.", registry=registry
        )
        self.kv_blocks = Gauge(
            "taskmix_kv_blocks_used", "KV blocks held by requests in flight.", registry=registry
        )
        self.task_references = Gauge(
            "taskmix_task_references",
            "Uses of loaded tasks by requests in flight.",
            registry=registry,
        )
        self.resident_bytes = Gauge(
            "taskmix_resident_bytes", "Bytes of deltas in the engine.", registry=registry
        )
        self.ready_variants = Gauge(
            "taskmix_ready_variants", "Mixes registered in the engine.", registry=registry
        )

    def record_load(self, num_running: int, num_waiting: int, used_kv_blocks: int) -> None:
        """Called after each step of the engine."""
        self.running.set(num_running)
        self.waiting.set(num_waiting)
        self.kv_blocks.set(used_kv_blocks)

    def read_at_scrape(
        self,
        task_references: Callable[[], float],
        resident_bytes: Callable[[], float],
        ready_variants: Callable[[], float],
    ) -> None:
        """Gauges that are read from their owner when they are scraped."""
        self.task_references.set_function(task_references)
        self.resident_bytes.set_function(resident_bytes)
        self.ready_variants.set_function(ready_variants)
