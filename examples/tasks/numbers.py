"""An amount of money as people write it, as a computer does. Formats are Unicode's CLDR."""

import random
from collections.abc import Iterator
from decimal import Decimal

from babel.numbers import format_currency

from examples.tasks.task import Example, Row, Task, split

PROMPT = "Amount: {text}\nAmount as a plain number:"
# Groups are parted by points, commas, apostrophes or spaces, and hold three digits or two. All of
# these currencies have cents, so that no amount can be read in two ways.
CURRENCIES = {
    "de": "EUR",
    "de_CH": "CHF",
    "en_IN": "INR",
    "en_US": "USD",
    "es_MX": "MXN",
    "fi": "EUR",
    "fr": "EUR",
    "pl": "PLN",
    "pt_BR": "BRL",
    "sv": "SEK",
}
NUM_AMOUNTS = 2000
# Of an amount in cents: from 1,000.00 to 99,999,999.99.
NUM_DIGITS = range(6, 11)
DRAW_SEED = 0


def load_numbers() -> Task:
    """Amounts of random length and digits, each written as in one of ten countries."""
    return split("numbers", "an amount of money as in one of ten countries, in digits", 14, _rows())


def _rows() -> Iterator[Row]:
    draw = random.Random(DRAW_SEED)  # noqa: S311 - a sample, not a secret
    for index in range(NUM_AMOUNTS):
        locale, currency = list(CURRENCIES.items())[index % len(CURRENCIES)]
        limit = 10 ** draw.choice(NUM_DIGITS)
        amount = Decimal(draw.randrange(limit // 10, limit)).scaleb(-2)
        text = format_currency(amount, currency, locale=locale)
        yield Row(str(amount), Example(PROMPT.format(text=text), str(amount)))
