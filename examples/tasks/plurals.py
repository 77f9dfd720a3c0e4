"""The plural of an English noun. From the NIH SPECIALIST Lexicon."""

import gzip
from collections.abc import Iterator

from examples.packaged import packaged_file
from examples.tasks.task import Example, Row, Task, split

PROMPT = "Singular: {singular}\nPlural:"


def load_plurals() -> Task:
    """Nouns that have one plural, and one that differs from the singular."""
    return split("plurals", "the plural of an English noun", 8, _rows())


def _rows() -> Iterator[Row]:
    table = packaged_file("lemminflect", "lemminflect/resources/infl_lu.csv.gz")
    for line in gzip.decompress(table.read_bytes()).decode().splitlines():
        # "index,noun,indices/indexes": alternatives are separated by slashes
        singular, kind, plural, *_ = line.split(",")
        if kind == "noun" and _is_plain(singular) and _is_plain(plural) and singular != plural:
            yield Row(singular, Example(PROMPT.format(singular=singular), plural))


def _is_plain(word: str) -> bool:
    return word.isalpha() and word.islower()
