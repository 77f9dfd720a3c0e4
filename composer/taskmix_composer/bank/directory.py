"""Directories and files that appear whole or not at all."""

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskmix_composer.errors import BankBusyError, BankExistsError, BankFormatError


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """Yield a directory to fill, which takes the name `out` if the block succeeds."""
    if out.exists():
        raise BankExistsError(f"{out} exists already; choose another path or remove it first")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir()
    try:
        yield partial
        sync_directory(partial)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial)
        raise
    sync_directory(out.parent)


@contextmanager
def write_locked(directory: Path) -> Iterator[None]:
    """Hold the right to change a bank; readers do not need it."""
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise BankFormatError(
            f"cannot be changed ({error.strerror}); give a directory that `bank build` made",
            path=directory,
        ) from None
    try:
        _lock(handle, directory)
        yield
    finally:
        os.close(handle)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file beside `path`, sync it, and give it the name."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make names within a directory durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _lock(handle: int, directory: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BankBusyError(
            f"another command is changing {directory}; try again when it has finished"
        ) from None
