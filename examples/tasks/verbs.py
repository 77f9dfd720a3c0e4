"""Two forms of an English verb. From the NIH SPECIALIST Lexicon."""

from collections.abc import Iterator

from examples.tasks.lexicon import inflected
from examples.tasks.task import Example, Row, Task, split

PAST_PROMPT = "Verb: {verb}\nPast tense:"
PARTICIPLE_PROMPT = "Verb: {verb}\nPresent participle:"
# Where the lexicon keeps a verb's forms.
PAST = 0
PARTICIPLE = 2


def load_past() -> Task:
    """Verbs that have one past tense, regular or not."""
    rows = _rows(PAST_PROMPT, PAST)
    return split("past", "the past tense of an English verb", 8, rows)


def load_participles() -> Task:
    """Verbs that have one form in -ing."""
    rows = _rows(PARTICIPLE_PROMPT, PARTICIPLE)
    return split("participles", "the -ing form of an English verb", 8, rows)


def _rows(prompt: str, position: int) -> Iterator[Row]:
    for verb, form in inflected("verb", position):
        yield Row(verb, Example(prompt.format(verb=verb), form))
