"""How far long work has come."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with the parameters done and their total."""


class Meter:
    """Adds up work for a progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def advance(self, num_parameters: int) -> None:
        self._done += num_parameters
        if self._progress is not None:
            self._progress(self._done, self._total)
