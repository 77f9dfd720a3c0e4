"""Dense weights made of coded ones, kept within a byte budget."""

from collections.abc import Callable, Hashable, Iterable
from typing import Protocol

from cachetools import LRUCache
from torch import Tensor

Make = Callable[[], Tensor]


class Sized(Protocol):
    """What says how many bytes it holds."""

    @property
    def nbytes(self) -> int: ...


class DeltaCache:
    """The dense forms used last, at most `max_bytes` of them. For one thread.

    A dense form is made again when it is not here, so a budget of 0 is slow and correct. What is
    larger than the whole budget is never kept and drives nothing out.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_hits = 0
        self.num_misses = 0
        self._dense: LRUCache[Hashable, Sized] = LRUCache(
            max_bytes, getsizeof=lambda dense: dense.nbytes
        )

    def __contains__(self, key: Hashable) -> bool:
        return key in self._dense

    @property
    def num_bytes(self) -> int:
        return int(self._dense.currsize)

    def get(self, key: Hashable, make: Make) -> Tensor:
        """What was made for this key, or what `make` gives now."""
        dense = self._dense.get(key)
        if dense is not None:
            self.num_hits += 1
            assert isinstance(dense, Tensor)
            return dense
        self.num_misses += 1
        made = make()
        self.put(key, made)
        return made

    def find(self, key: Hashable) -> Sized | None:
        """What was put under this key, if it is still here."""
        return self._dense.get(key)

    def put(self, key: Hashable, dense: Sized) -> None:
        """Keep a dense form, unless it is larger than the whole budget."""
        if dense.nbytes <= self.max_bytes:
            self._dense[key] = dense

    def fill(self, key: Hashable, dense: Sized) -> None:
        """Keep a dense form if there is room without driving another out."""
        if self.num_bytes + dense.nbytes <= self.max_bytes:
            self._dense[key] = dense

    def drop(self, keys: Iterable[Hashable]) -> None:
        """Let go of what was made for these keys."""
        for key in keys:
            self._dense.pop(key, None)
