"""How long work takes on the device: replays of a captured graph, between two events each."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.record import spread


@dataclass(frozen=True, slots=True)
class Clock:
    """device: cuda, or cpu, where what is timed is the interpreter and means nothing."""

    device: torch.device
    num_replays: int

    def seconds(self, calls: Sequence[Callable[[], None]]) -> dict[str, float]:
        """The 20th, 50th and 80th percentile of one call's time.

        The calls do equal work on different operands, so that no cache holds what they read.
        """
        times = self._replays(calls) if self.device.type == "cuda" else self._runs(calls)
        return {name: value / len(calls) for name, value in spread(times).items()}

    def _replays(self, calls: Sequence[Callable[[], None]]) -> list[float]:
        for call in calls:
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        for _ in range(3):
            graph.replay()
        marks = []
        for _ in range(self.num_replays):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            graph.replay()
            last.record()
            marks.append((first, last))
        torch.cuda.synchronize()
        return [first.elapsed_time(last) / 1e3 for first, last in marks]

    def _runs(self, calls: Sequence[Callable[[], None]]) -> list[float]:
        times = []
        for _ in range(2):
            started = time.perf_counter()
            for call in calls:
                call()
            times.append(time.perf_counter() - started)
        return times


def copy_bandwidth(clock: Clock, num_bytes: int) -> float:
    """Bytes a second that a copy reads and writes: what a kernel's bytes are compared with."""
    source = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    return 2 * num_bytes / clock.seconds([lambda: target.copy_(source)])["p50"]
