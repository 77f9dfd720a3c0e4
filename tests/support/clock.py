"""A wall clock of their own for a server's processes, which a test sets while they run."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class WallClock:
    """libfaketime's: `file` says by how much what processes read differs from the machine's clock.

    Monotonic clocks are left alone, as they are when a machine's clock is set.
    """

    file: Path

    @classmethod
    def at(cls, file: Path) -> "WallClock":
        """A clock that is right until it is set."""
        clock = cls(file)
        clock.set_off(hours=0)
        return clock

    @property
    def environment(self) -> tuple[str, ...]:
        """What makes a process and its children go by this clock."""
        return (
            f"LD_PRELOAD={_library()}",
            f"FAKETIME_TIMESTAMP_FILE={self.file}",
            "FAKETIME_NO_CACHE=1",  # the file is read for each look at the clock
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
            # Or waits by a monotonic clock, such as that for Python's lock, end at once.
            "FAKETIME_FORCE_MONOTONIC_FIX=0",
            "NO_FAKE_STAT=1",
        )

    def set_off(self, *, hours: int) -> None:
        """Set the clock off by so much, at once."""
        new = self.file.with_suffix(".new")
        new.write_text(f"{hours:+d}h\n", encoding="utf-8")
        new.replace(self.file)


def _library() -> Path:
    package = find_spec("libfaketime")
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
    assert path.is_file(), "`make setup` installs it"
    return path
