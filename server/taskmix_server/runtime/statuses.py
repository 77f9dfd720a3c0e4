"""Tasks as operators see them."""

from dataclasses import dataclass
from enum import Enum


class TaskState(Enum):
    """Where a task is; an offloaded one is served, and loaded when a request names it."""

    ON_DISK = "on disk"
    LOADING = "loading"
    RESIDENT = "resident"
    UNLOADING = "unloading"
    OFFLOADED = "offloaded"


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """A task as an operator sees it; bytes of its encoded deltas, 0 resident if not loaded."""

    name: str
    scheme: str
    num_bytes: int
    resident_bytes: int
    digest: str
    state: TaskState
    references: int
    is_served: bool
