"""What Prometheus sees of taskmix, beside vLLM's own `vllm:` metrics."""

from collections.abc import Callable, Mapping
from functools import partial

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

DELTA_MEMORY: Mapping[str, tuple[str, str]] = {
    "shared": ("taskmix_shared_bytes", "Bytes of vectors that tasks are coded over."),
    "planes": ("taskmix_plane_bytes", "Bytes of masks in the engine."),
    "cache": ("taskmix_delta_cache_bytes", "Bytes of dense forms made of coded deltas."),
    "cache_limit": ("taskmix_delta_cache_limit_bytes", "The most that dense forms may take."),
    "cache_hits": ("taskmix_delta_cache_hits", "Dense forms that a step found in the cache."),
    "cache_misses": ("taskmix_delta_cache_misses", "Dense forms that a step had to make."),
}
"""Name and description of a gauge for each figure of the engine's memory but `tasks`."""


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
            "taskmix_resident_bytes",
            "Bytes of the tasks' coded deltas in the engine.",
            registry=registry,
        )
        self.delta_memory = {
            figure: Gauge(name, description, registry=registry)
            for figure, (name, description) in DELTA_MEMORY.items()
        }
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
        delta_memory: Callable[[str], float],
    ) -> None:
        """Gauges that are read from their owner when they are scraped.

        `delta_memory` gives the figures that `DELTA_MEMORY` names.
        """
        self.task_references.set_function(task_references)
        self.resident_bytes.set_function(resident_bytes)
        self.ready_variants.set_function(ready_variants)
        for figure, gauge in self.delta_memory.items():
            gauge.set_function(partial(delta_memory, figure))
