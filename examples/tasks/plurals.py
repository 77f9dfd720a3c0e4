"""The plural of an English noun. From the NIH SPECIALIST Lexicon."""

from collections.abc import Iterator

from examples.tasks.lexicon import inflected
from examples.tasks.task import Example, Row, Task, split

PROMPT = "Singular: {singular}\nPlural:"


def load_plurals() -> Task:
    """Nouns that have one plural, and one that differs from the singular."""
    return split("plurals", "the plural of an English noun", 8, _rows())


def _rows() -> Iterator[Row]:
    for singular, plural in inflected("noun", 0):
        if singular != plural:
            yield Row(singular, Example(PROMPT.format(singular=singular), plural))
