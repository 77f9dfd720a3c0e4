"""Who works on a state directory: servers together, or one command alone; and who opens it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskmix_server.errors import FailedPreconditionError

FILENAME = "in-use.lock"


@contextmanager
def state_in_use(directory: Path, *, alone: bool = False) -> Iterator[None]:
    """Mark the directory as in use for the block.

    A server keeps tenants and verified keys in memory: what a command changed behind its back
    would not count. Raises FailedPreconditionError where the two would meet.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = directory / FILENAME
    path.touch(mode=0o600)
    with path.open("a") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            advice = (
                f"a server runs on {directory}; ask it with --server instead of --state"
                if alone
                else f"a command works on {directory}; start again when it is done"
            )
            raise FailedPreconditionError(advice) from error
        yield


@contextmanager
def opening(directory: Path) -> Iterator[None]:
    """Wait until no other process or thread opens the directory's database.

    SQLite does not wait where two change a file to its write-ahead log: one of them is refused.
    """
    held = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)
