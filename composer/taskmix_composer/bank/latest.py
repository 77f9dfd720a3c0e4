"""A bank directory that is asked again and again, and read anew only when it has changed."""

from pathlib import Path

from taskmix_composer.bank.manifest import MANIFEST_FILE, SHARD_DIRECTORY
from taskmix_composer.bank.reader import Bank
from taskmix_composer.errors import BaseMismatchError

Stamp = frozenset[tuple[str, int, int, int]]
"""Name, inode, bytes and time of change of each file."""


class LatestBank:
    """The bank of a directory as it is now, always of one base.

    Writers give every file that they change another inode, and copies another time.
    """

    def __init__(self, bank: Bank) -> None:
        self._path = bank.path
        self._base = bank.base
        self._seen: tuple[Stamp | None, Bank] = None, bank

    @property
    def seen(self) -> Bank:
        """The bank as it was read last."""
        return self._seen[1]

    def open(self) -> Bank:
        """The bank now. Raises BaseMismatchError if it is one of another base."""
        stamp = _stamp(self._path)  # before reading: what changes meanwhile is read the next time
        if stamp is None or stamp != self._seen[0]:
            bank = Bank.open(self._path)
            if bank.base != self._base:
                raise BaseMismatchError(
                    f"{self._path} now holds a bank of another base; restart the server with that "
                    "base, or put the bank back"
                )
            self._seen = stamp, bank
        return self.seen


def _stamp(path: Path) -> Stamp | None:
    """None where files are missing, or cannot be looked at."""
    try:
        files = [path / MANIFEST_FILE, *(path / SHARD_DIRECTORY).iterdir()]
        stats = [(file.name, file.stat()) for file in files]
    except OSError:
        return None
    return frozenset((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
