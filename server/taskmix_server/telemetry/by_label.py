"""Gauges whose labels come and go, for Prometheus."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from taskmix_server.telemetry.labels import OTHER


class GaugeByLabel(Collector):
    """The largest `max_values` one by one, the rest as one; a series ends with what it is of.

    read: gives the values by label when they are scraped.
    """

    def __init__(self, name: str, description: str, label: str, max_values: int) -> None:
        self.read: Callable[[], Mapping[str, int]] = dict
        self._name = name
        self._description = description
        self._label = label
        self._max_values = max_values

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(self._name, self._description, labels=[self._label])
        by_size = sorted(self.read().items(), key=lambda item: (-item[1], item[0]))
        for value, number in by_size[: self._max_values]:
            family.add_metric([value], number)
        rest = [number for _, number in by_size[self._max_values :]]
        if rest:
            family.add_metric([OTHER], sum(rest))
        yield family
