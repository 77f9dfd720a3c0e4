"""English words and their forms, from the NIH SPECIALIST Lexicon as `lemminflect` carries it."""

import gzip
from collections.abc import Iterator

from examples.packaged import packaged_file

TABLE = "lemminflect/resources/infl_lu.csv.gz"


def entries() -> Iterator[tuple[str, str, list[str]]]:
    """(word, kind, forms): "noun", "verb", "adj" or "adv", and forms in an order that kind fixes.

    A form that the word lacks is empty; alternatives are in one form, "indices/indexes".
    """
    table = packaged_file("lemminflect", TABLE)
    for line in gzip.decompress(table.read_bytes()).decode().splitlines():
        word, kind, *forms = line.split(",")
        yield word, kind, forms


def inflected(kind: str, position: int) -> Iterator[tuple[str, str]]:
    """Each plain word of a kind that has exactly one form at `position`, and that form."""
    for word, its_kind, forms in entries():
        if its_kind == kind and is_plain(word) and is_plain(forms[position]):
            yield word, forms[position]


def is_plain(word: str) -> bool:
    """Whether this is one word in small letters, neither a name nor a list of alternatives."""
    return word.isalpha() and word.islower()
