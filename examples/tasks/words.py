"""Is a word a noun, a verb, an adjective or an adverb? From the NIH SPECIALIST Lexicon."""

import random
from collections.abc import Iterator

from examples.tasks.lexicon import entries, is_plain
from examples.tasks.task import Example, Row, Task, split

PROMPT = "Word: {word}\nPart of speech:"
KINDS = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
NUM_EACH = 1000
DRAW_SEED = 0


def load_words() -> Task:
    """As many words of each of the four kinds, none of which is of two kinds."""
    return split("words", "whether a word is a noun, verb, adjective or adverb", 6, _rows())


def _rows() -> Iterator[Row]:
    draw = random.Random(DRAW_SEED)  # noqa: S311 - a sample, not a secret
    for kind, words in _words_of_one_kind().items():
        for word in draw.sample(words, NUM_EACH):
            yield Row(word, Example(PROMPT.format(word=word), KINDS[kind]))


def _words_of_one_kind() -> dict[str, list[str]]:
    """By kind, in the lexicon's order."""
    kinds: dict[str, set[str]] = {}
    for word, kind, _ in entries():
        if is_plain(word):
            kinds.setdefault(word, set()).add(kind)
    return {kind: [word for word, its in kinds.items() if its == {kind}] for kind in KINDS}
