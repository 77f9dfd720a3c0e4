"""Resident bytes by task, for Prometheus."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from taskmix_server.telemetry.labels import MAX_TASKS, OTHER

NAME = "taskmix_task_resident_bytes"


class TaskBytes(Collector):
    """The largest `max_tasks` tasks one by one, the rest as one; a task's series ends with it."""

    def __init__(self, max_tasks: int = MAX_TASKS) -> None:
        self._max_tasks = max_tasks
        self.read: Callable[[], Mapping[str, int]] = dict

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            NAME, "Bytes of a task's coded deltas in the engine.", labels=["task"]
        )
        by_size = sorted(self.read().items(), key=lambda item: (-item[1], item[0]))
        for task, num_bytes in by_size[: self._max_tasks]:
            family.add_metric([task], num_bytes)
        rest = [num_bytes for _, num_bytes in by_size[self._max_tasks :]]
        if rest:
            family.add_metric([OTHER], sum(rest))
        yield family
