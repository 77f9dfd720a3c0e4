"""What Prometheus sees of taskmix, beside vLLM's own `vllm:` metrics: every name, once."""

from collections.abc import Callable, Mapping
from functools import partial

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from taskmix_server.telemetry.by_label import GaugeByLabel
from taskmix_server.telemetry.labels import (
    MAX_ARMS,
    MAX_TASKS,
    MAX_TENANTS,
    LabelPairs,
    LabelValues,
)
from taskmix_server.telemetry.outcomes import FAILED, OK, outcome_of
from taskmix_server.telemetry.requests import RequestRecord

DELTA_MEMORY: Mapping[str, tuple[str, str]] = {
    "shared": ("taskmix_shared_bytes", "Bytes of vectors that tasks are coded over."),
    "planes": ("taskmix_plane_bytes", "Bytes of masks in the engine."),
    "slots": ("taskmix_slot_bytes", "Bytes of the tables that Triton's kernels read."),
    "cache": ("taskmix_delta_cache_bytes", "Bytes of dense forms made of coded deltas."),
    "cache_limit": ("taskmix_delta_cache_limit_bytes", "The most that dense forms may take."),
    "cache_hits": ("taskmix_delta_cache_hits", "Dense forms that a step found in the cache."),
    "cache_misses": ("taskmix_delta_cache_misses", "Dense forms that a step had to make."),
    "merges": ("taskmix_merges", "Mixes that were merged since they had batches to themselves."),
    "steps_base": ("taskmix_steps_base", "Steps in which no request had a mix."),
    "steps_merged": ("taskmix_steps_merged", "Steps that ran on merged weights."),
    "steps_added": ("taskmix_steps_added", "Steps in which deltas were added to the base's."),
}
"""Name and description of a gauge for each figure of the engine's memory but `tasks`."""

GAUGES: Mapping[str, tuple[str, str]] = {
    "running": ("taskmix_requests_running", "Requests being run by the engine."),
    "waiting": (
        "taskmix_requests_waiting",
        "Requests waiting for the engine, in its queue or the server's line.",
    ),
    "kv_blocks": ("taskmix_kv_blocks_used", "KV blocks held by requests in flight."),
    "task_references": ("taskmix_task_references", "Uses of loaded tasks by requests in flight."),
    "resident_bytes": (
        "taskmix_resident_bytes",
        "Bytes of the tasks' coded deltas in the engine.",
    ),
    "ready_variants": ("taskmix_ready_variants", "Mixes registered in the engine."),
    "engine_up": (
        "taskmix_engine_up",
        "1 while the engine serves, 0 from its death until it is back.",
    ),
}

GAUGES_BY_LABEL: Mapping[str, tuple[str, str, str, int]] = {
    "task_bytes": (
        "taskmix_task_resident_bytes",
        "Bytes of a task's coded deltas in the engine.",
        "task",
        MAX_TASKS,
    ),
    "tenant_waiting": (
        "taskmix_tenant_waiting",
        "Answers of a tenant that wait for the engine.",
        "tenant",
        MAX_TENANTS,
    ),
}
"""Name, description, label, and how many values of it have series of their own."""

COUNTERS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "requests": (
        "taskmix_requests",
        "Generation requests: ok, cancelled by the caller, refused for a reason, or failed.",
        ("edge", "tenant", "outcome", "reason"),
    ),
    "denials": (
        "taskmix_calls_denied",
        "Calls of any kind that were turned away before their edge looked at them.",
        ("reason",),
    ),
    "prompt_tokens": (
        "taskmix_prompt_tokens",
        "Tokens of prompts, those whose keys and values were reused included.",
        ("tenant", "mix"),
    ),
    "cached_tokens": (
        "taskmix_cached_prompt_tokens",
        "Tokens of prompts whose keys and values were reused.",
        ("tenant", "mix"),
    ),
    "output_tokens": ("taskmix_output_tokens", "Tokens of answers.", ("tenant", "mix")),
    "task_requests": (
        "taskmix_task_requests",
        "Generation requests whose mix has the task, ad-hoc mixes included.",
        ("task",),
    ),
    "engine_restarts": (
        "taskmix_engine_restarts",
        "Tries to start an engine again that had died, by outcome (ok or failed).",
        ("outcome",),
    ),
    "experiment_drops": (
        "taskmix_experiment_requests_dropped",
        "Requests of experiments that were answered, and that their results lack.",
        (),
    ),
    "arm_requests": (
        "taskmix_arm_requests",
        "Generation requests of experiments by EXPERIMENT@VERSION/ARM, - where no arm is counted.",
        ("arm", "outcome"),
    ),
    "guardrail_checks": (
        "taskmix_guardrail_checks",
        "Checks of a running experiment against its rules, by outcome (ok or failed).",
        ("outcome",),
    ),
    "guardrail_stops": (
        "taskmix_guardrail_stops",
        "Arms that were stopped for breaking a rule, by EXPERIMENT@VERSION/ARM.",
        ("arm",),
    ),
    "shadows": (
        "taskmix_shadows",
        "Copies of requests for shadow arms: answered, failed, or dropped as busy or full.",
        ("outcome",),
    ),
    "task_loads": (
        "taskmix_task_loads",
        "Loads of a task into the engine by outcome (ok or failed).",
        ("task", "outcome"),
    ),
    "task_evictions": (
        "taskmix_task_evictions",
        "Tasks that left the engine to make room for others.",
        (),
    ),
}
"""Name, description and labels. Prometheus adds `_total` to the name."""

_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_STEP_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_LOAD_S = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

HISTOGRAMS: Mapping[str, tuple[str, str, tuple[str, ...], tuple[float, ...]]] = {
    "ttft": (
        "taskmix_time_to_first_token_seconds",
        "From the request's arrival at the edge to its first token.",
        ("tenant", "mix"),
        _LATENCY_S,
    ),
    "inter_token": (
        "taskmix_inter_token_seconds",
        "Mean time between the tokens of an answer, once for each prompt.",
        ("tenant", "mix"),
        _STEP_S,
    ),
    "end_to_end": (
        "taskmix_request_seconds",
        "From the request's arrival at the edge to the end of its answer; answers only.",
        ("tenant", "mix"),
        _LATENCY_S,
    ),
    "task_load": (
        "taskmix_task_load_seconds",
        "Time to load a task's content into the engine.",
        (),
        _LOAD_S,
    ),
}
"""Name, description, labels and the upper bounds of the buckets in seconds."""


class Metrics:
    """Every metric of this server. No label grows with ad-hoc mixes, nor past `labels`' bounds."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._pairs = LabelPairs()
        self._tasks = LabelValues(MAX_TASKS)
        self._arms = LabelValues(MAX_ARMS)
        self._gauges = {
            key: Gauge(name, description, registry=registry)
            for key, (name, description) in GAUGES.items()
        }
        self._counters = {
            key: Counter(name, description, labels, registry=registry)
            for key, (name, description, labels) in COUNTERS.items()
        }
        self._histograms = {
            key: Histogram(name, description, labels, buckets=bounds, registry=registry)
            for key, (name, description, labels, bounds) in HISTOGRAMS.items()
        }
        self._delta_memory = {
            figure: Gauge(name, description, registry=registry)
            for figure, (name, description) in DELTA_MEMORY.items()
        }
        for error in ("UnauthenticatedError", "PermissionDeniedError"):
            self._denials(error)  # from zero on, so that the first one is seen to grow
        for outcome in (OK, FAILED):
            self._counters["engine_restarts"].labels(outcome)
            self._counters["guardrail_checks"].labels(outcome)
        self._by_label = {
            key: GaugeByLabel(*described) for key, described in GAUGES_BY_LABEL.items()
        }
        for gauge in self._by_label.values():
            registry.register(gauge)
        self.num_queued = 0
        """Requests in the engine's own queue after its last step."""

    def record_load(self, num_running: int, num_queued: int, used_kv_blocks: int) -> None:
        """Called after each step of the engine."""
        self._gauges["running"].set(num_running)
        self.num_queued = num_queued
        self._gauges["kv_blocks"].set(used_kv_blocks)

    def record_task_load(self, task: str, outcome: str, seconds: float) -> None:
        """Called after each try to load a task's content."""
        self._counters["task_loads"].labels(self._tasks.bounded(task), outcome).inc()
        self._histograms["task_load"].observe(seconds)

    def record_task_eviction(self) -> None:
        """A task left the engine to make room."""
        self._counters["task_evictions"].inc()

    def record_engine_restart(self, outcome: str) -> None:
        """Called after each try to start an engine that has died."""
        self._counters["engine_restarts"].labels(outcome).inc()

    def record_experiment_drops(self, num_requests: int) -> None:
        """Called when what requests of experiments left could not be kept."""
        self._counters["experiment_drops"].inc(num_requests)

    def record_shadow(self, outcome: str) -> None:
        """Called when a copy of a request was answered, has failed, or was dropped."""
        self._counters["shadows"].labels(outcome).inc()

    def record_guardrail_check(self, outcome: str) -> None:
        """Called when a running experiment was held against its rules, or could not be."""
        self._counters["guardrail_checks"].labels(outcome).inc()

    def record_guardrail_stop(self, arm: str) -> None:
        """Called when an arm, `NAME@VERSION/ARM`, was stopped for breaking a rule."""
        self._counters["guardrail_stops"].labels(self._arms.bounded(arm)).inc()

    def record_denial(self, error: str) -> None:
        """Called when a call was not admitted, with the name of the error."""
        self._denials(error).inc()

    def _denials(self, error: str) -> Counter:
        _, reason = outcome_of(error)
        return self._counters["denials"].labels(reason)

    def record_request(self, record: RequestRecord) -> None:
        """A `Report`: called when a generation request has ended, whatever became of it."""
        tenant = self._pairs.tenants.bounded(record.tenant)
        outcome = outcome_of(record.error, record.limit)
        self._counters["requests"].labels(record.edge, tenant, *outcome).inc()
        if record.resolved_s is None:
            return
        if record.arm:
            self._counters["arm_requests"].labels(self._arms.bounded(record.arm), outcome[0]).inc()
        for task in record.tasks:
            self._counters["task_requests"].labels(self._tasks.bounded(task)).inc()
        self._record_tokens(record, self._pairs.bounded(record.tenant, record.mix))

    def _record_tokens(self, record: RequestRecord, pair: tuple[str, str]) -> None:
        self._counters["prompt_tokens"].labels(*pair).inc(record.num_prompt_tokens)
        self._counters["cached_tokens"].labels(*pair).inc(record.num_cached_tokens)
        self._counters["output_tokens"].labels(*pair).inc(record.num_output_tokens)
        if record.ttft_s is not None:
            self._histograms["ttft"].labels(*pair).observe(record.ttft_s)
        for run in record.runs:
            if run.inter_token_s is not None:
                self._histograms["inter_token"].labels(*pair).observe(run.inter_token_s)
        if not record.error:
            self._histograms["end_to_end"].labels(*pair).observe(record.duration_s)

    def read_at_scrape(
        self,
        gauges: Mapping[str, Callable[[], float]],
        by_label: Mapping[str, Callable[[], Mapping[str, int]]],
        delta_memory: Callable[[str], float],
    ) -> None:
        """Gauges that are read from their owner when they are scraped.

        gauges, by_label: by their key in `GAUGES` and `GAUGES_BY_LABEL`. delta_memory: gives the
        figures that `DELTA_MEMORY` names.
        """
        for key, read in gauges.items():
            self._gauges[key].set_function(read)
        for key, read_all in by_label.items():
            self._by_label[key].read = read_all
        for figure, gauge in self._delta_memory.items():
            gauge.set_function(partial(delta_memory, figure))
