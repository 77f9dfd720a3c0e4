"""Data files that installed Python packages carry."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import click


class MissingDataError(click.ClickException):
    """A data file is not where its package should have put it."""


def packaged_file(package: str, name: str) -> Path:
    """The path of file `name` of an installed distribution, found without importing it."""
    try:
        path = Path(str(distribution(package).locate_file(name)))
    except PackageNotFoundError:
        raise MissingDataError(f"{package} is not installed: run `make setup`") from None
    if not path.is_file():
        raise MissingDataError(f"{package} has no {name}: reinstall it, or run `make setup` again")
    return path
