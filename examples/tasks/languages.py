"""Which language is a name in? From Unicode's CLDR: countries and currencies in ten languages."""

import re
from collections import Counter
from collections.abc import Iterator

from babel import Locale

from examples.tasks.task import Example, Row, Task, split

PROMPT = "Text: {text}\nLanguage:"
LANGUAGES = {
    "de": "German",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "hu": "Hungarian",
    "it": "Italian",
    "nl": "Dutch",
    "pl": "Polish",
    "sv": "Swedish",
    "tr": "Turkish",
}
MIN_LETTERS = 6
PARENTHESIS = re.compile(r"\s*\(.*?\)")


def load_languages() -> Task:
    """Names that one language uses, for one country or currency."""
    return split("languages", "the language that a country's or currency's name is in", 4, _rows())


def _rows() -> Iterator[Row]:
    uses = Counter(name.casefold() for _, _, name in _names())
    for code, subject, name in _names():
        if uses[name.casefold()] == 1:
            yield Row(subject, Example(PROMPT.format(text=name), LANGUAGES[code]))


def _names() -> Iterator[tuple[str, str, str]]:
    """(language code, code of the country or currency, its name), without years in parentheses."""
    for code in LANGUAGES:
        locale = Locale.parse(code)
        for subject, name in (*locale.territories.items(), *locale.currencies.items()):
            plain = PARENTHESIS.sub("", name)
            if len(plain) >= MIN_LETTERS:
                yield code, subject, plain
