"""`taskmix_requests_waiting`: what waits now, not what waited at the engine's last step."""

from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry

from taskmix_server.runtime.admission.admission import Admission, Ask
from taskmix_server.telemetry.metrics import Metrics
from taskmix_server.wiring import _measure
from tests.unit.server.test_admission import principal


def test_a_caller_that_gives_up_in_the_line_is_not_counted_any_more() -> None:
    registry = CollectorRegistry()
    metrics, admission = Metrics(registry), Admission(2, 100, is_shared=True)
    nothing: Any = SimpleNamespace(variants=(), statuses=list, memory=SimpleNamespace(last=None))
    inference: Any = SimpleNamespace(admission=admission)
    _measure(inference, nothing, metrics)

    def waiting() -> float | None:
        return registry.get_sample_value("taskmix_requests_waiting")

    with admission.admitted(principal(), Ask(1)):
        metrics.record_load(num_running=2, num_queued=3, used_kv_blocks=1)  # the last step
        assert waiting() == 4
    assert waiting() == 3
    metrics.record_load(num_running=0, num_queued=0, used_kv_blocks=0)
    assert waiting() == 0
