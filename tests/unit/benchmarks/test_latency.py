"""How streams are timed, and what goes on beside them."""

import asyncio

from benchmarks.latency import Stream, load_in_turn, loading
from benchmarks.servers import Running


def test_a_stream_waits_for_its_first_piece_and_between_pieces():
    stream = Stream(sent_s=10.0, came_s=[10.5, 10.75, 11.75])
    assert stream.ttft_s == 0.5
    assert stream.gaps_s == [0.25, 1.0]


class Tasks:
    """Stands for a server's tasks: notes what is asked, and ends the measurement at a load."""

    def __init__(self, num_loads: int) -> None:
        self.calls: list[tuple[str, str]] = []
        self.is_over = asyncio.Event()
        self._num_loads = num_loads

    async def unload_task(self, name: str) -> None:
        self.calls.append(("unload", name))

    async def load_task(self, name: str) -> None:
        self.calls.append(("load", name))
        if len(self.calls) == 2 * self._num_loads:
            self.is_over.set()


async def test_tasks_come_and_go_until_the_streams_end():
    tasks, loads_s = Tasks(num_loads=3), []
    await load_in_turn(tasks, ("a", "b"), loads_s, tasks.is_over)
    assert tasks.calls == [(verb, name) for name in "aba" for verb in ("unload", "load")]
    assert len(loads_s) == 3


async def test_nothing_is_loaded_when_nothing_is_named():
    nowhere = Running(http="", grpc="", start_s=0.0, pid=0)
    async with loading(nowhere, ()) as loads_s:
        pass
    assert loads_s == []
