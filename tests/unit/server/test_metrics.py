"""What a finished request does to the registry."""

from prometheus_client import CollectorRegistry

from taskmix_composer import errors as composer
from taskmix_server import errors as serving
from taskmix_server.telemetry.labels import MAX_MIXES, MAX_TASKS, MAX_TENANTS, OTHER
from taskmix_server.telemetry.metrics import Metrics
from taskmix_server.telemetry.outcomes import CANCELLED, FAILED, OK, REFUSED, outcome_of
from taskmix_server.telemetry.requests import RequestRecord

NOT_REFUSED = {
    composer.ComposerError,
    serving.ServingError,
    serving.DeadlineExceededError,
    serving.InternalError,
}


def finished(error: str = "", tenant: str = "t", mix: str = "prod") -> RequestRecord:
    """A request of a second: 5 prompt tokens, a first token after half of it, 3 tokens."""
    record = RequestRecord("id", "grpc", tenant, started_s=10.0)
    record.resolve(mix, ("law", "code"), "digest", "")
    with record.run() as run:
        run.num_prompt_tokens, run.num_cached_tokens = 5, 4
        run.advance(10.5, {0: 1}, None)
        run.advance(10.9, {0: 2}, None)
    record.ended_s = 11.0
    record.error = error
    return record


def samples(registry: CollectorRegistry, name: str) -> dict[tuple[str, ...], float]:
    """Values of a series by the values of its labels."""
    return {
        tuple(sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name
    }


def recorded(*records: RequestRecord) -> CollectorRegistry:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for record in records:
        metrics.record_request(record)
    return registry


def test_an_answer() -> None:
    registry = recorded(finished())
    pair = ("t", "prod")
    assert samples(registry, "taskmix_requests_total") == {("grpc", "t", "ok", ""): 1.0}
    assert samples(registry, "taskmix_prompt_tokens_total") == {pair: 5.0}
    assert samples(registry, "taskmix_cached_prompt_tokens_total") == {pair: 4.0}
    assert samples(registry, "taskmix_output_tokens_total") == {pair: 3.0}
    assert samples(registry, "taskmix_time_to_first_token_seconds_sum") == {pair: 0.5}
    assert samples(registry, "taskmix_request_seconds_sum") == {pair: 1.0}
    (mean_s,) = samples(registry, "taskmix_inter_token_seconds_sum").values()
    assert abs(mean_s - 0.2) < 1e-9
    assert samples(registry, "taskmix_task_requests_total") == {("law",): 1.0, ("code",): 1.0}


def test_a_caller_who_left_is_charged_and_not_timed_to_the_end() -> None:
    registry = recorded(finished("CancelledError"))
    assert samples(registry, "taskmix_requests_total") == {("grpc", "t", CANCELLED, ""): 1.0}
    assert samples(registry, "taskmix_output_tokens_total") == {("t", "prod"): 3.0}
    assert samples(registry, "taskmix_time_to_first_token_seconds_count") == {("t", "prod"): 1.0}
    assert samples(registry, "taskmix_request_seconds_count") == {}


def test_a_refusal_before_anything_was_resolved() -> None:
    record = RequestRecord("id", "http", error="InvalidMixError", ended_s=0.0)
    registry = recorded(record)
    key = ("http", "default", REFUSED, "invalid")
    assert samples(registry, "taskmix_requests_total") == {key: 1.0}
    assert samples(registry, "taskmix_prompt_tokens_total") == {}


def test_every_error_is_a_refusal_or_named_here() -> None:
    for module in (composer, serving):
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, Exception):
                is_refused = outcome_of(kind.__name__)[0] == REFUSED
                assert is_refused is (kind not in NOT_REFUSED), kind


def test_outcomes() -> None:
    assert outcome_of("") == (OK, "")
    assert outcome_of("GeneratorExit") == outcome_of("DeadlineExceededError") == (CANCELLED, "")
    assert outcome_of("KeyError") == (FAILED, "KeyError")
    assert outcome_of("HTTP 500") == (FAILED, "HTTP 500")
    assert outcome_of("HTTP 429") == (REFUSED, "limit")


def test_more_tenants_mixes_and_tasks_than_labels() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for number in range(3 * MAX_TASKS):
        record = finished(tenant=f"t{number}", mix=f"m{number}")
        record.tasks = (f"task{number}",)
        metrics.record_request(record)
        metrics.record_task_load(f"task{number}", OK, 0.1)
    tokens = samples(registry, "taskmix_output_tokens_total")
    assert len({tenant for tenant, _ in tokens}) == MAX_TENANTS + 1
    assert len({mix for _, mix in tokens}) == MAX_MIXES + 1
    assert tokens[OTHER, OTHER] > 0
    assert sum(tokens.values()) == 3.0 * 3 * MAX_TASKS
    assert len(samples(registry, "taskmix_requests_total")) == MAX_TENANTS + 1
    assert len(samples(registry, "taskmix_task_requests_total")) == MAX_TASKS + 1
    assert len(samples(registry, "taskmix_task_loads_total")) == MAX_TASKS + 1


def test_loads() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.record_task_load("law", OK, 0.25)
    metrics.record_task_load("law", FAILED, 0.5)
    loads = {("law", OK): 1.0, ("law", FAILED): 1.0}
    assert samples(registry, "taskmix_task_loads_total") == loads
    assert samples(registry, "taskmix_task_load_seconds_sum") == {(): 0.75}


def test_engine_restarts() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    name = "taskmix_engine_restarts_total"
    assert samples(registry, name) == {(OK,): 0.0, (FAILED,): 0.0}, "the first one is seen to grow"
    metrics.record_engine_restart(FAILED)
    metrics.record_engine_restart(OK)
    assert samples(registry, name) == {(OK,): 1.0, (FAILED,): 1.0}


def test_calls_that_were_turned_away() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for error in ("UnauthenticatedError", "PermissionDeniedError", "UnauthenticatedError"):
        metrics.record_denial(error)
    denied = {("unauthenticated",): 2.0, ("forbidden",): 1.0}
    assert samples(registry, "taskmix_calls_denied_total") == denied


def test_refusals_by_limit() -> None:
    refused = finished("ResourceExhaustedError")
    refused.limit = "tokens"
    counted = samples(recorded(refused), "taskmix_requests_total")
    assert counted == {("grpc", "t", REFUSED, "limit_tokens"): 1.0}


def test_resident_bytes_by_task() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    held = {"law": 3, "code": 5}
    metrics.read_at_scrape({}, {"task_bytes": lambda: held}, lambda figure: 0.0)
    name = "taskmix_task_resident_bytes"
    assert samples(registry, name) == {("code",): 5.0, ("law",): 3.0}
    del held["law"]
    assert samples(registry, name) == {("code",): 5.0}
    held.update({f"t{number}": 1 for number in range(MAX_TASKS)})
    assert samples(registry, name)[OTHER,] == 1.0
    assert len(samples(registry, name)) == MAX_TASKS + 1
