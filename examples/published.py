"""Directories that appear whole or not at all, and know what they were made from."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PROVENANCE_FILE = "provenance.json"

Provenance = Mapping[str, str | int | float]


def is_current(directory: Path, provenance: Provenance) -> bool:
    """Whether `directory` was published from exactly this provenance."""
    record = directory / PROVENANCE_FILE
    return record.is_file() and json.loads(record.read_text()) == provenance


@contextmanager
def published(directory: Path, provenance: Provenance) -> Iterator[Path]:
    """A temporary directory to fill; it replaces `directory` if the block ends without an error."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".unfinished-") as temporary:
        filled = Path(temporary) / directory.name
        filled.mkdir()
        yield filled
        (filled / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=2) + "\n")
        if directory.exists():
            shutil.rmtree(directory)
        filled.rename(directory)
