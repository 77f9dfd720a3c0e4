"""A date as people write it, as a computer does. Formats and months are Unicode's CLDR."""

from collections.abc import Iterator
from datetime import date, timedelta

from babel.dates import format_date

from examples.tasks.languages import LANGUAGES
from examples.tasks.task import Example, Row, Task, split

PROMPT = "Date: {text}\nDate as YYYY-MM-DD:"
FIRST = date(1950, 1, 1)
# Steps of 19 days pass through every month, and every day of the month, until 2050.
STEP = timedelta(days=19)
NUM_DATES = 1920


def load_dates() -> Task:
    """Dates from 1950 to 2050, each written out in one of ten languages."""
    return split("dates", "a date written out in one of ten languages, in digits", 12, _rows())


def _rows() -> Iterator[Row]:
    codes = list(LANGUAGES)
    for index in range(NUM_DATES):
        day = FIRST + index * STEP
        text = format_date(day, format="long", locale=codes[index % len(codes)])
        yield Row(day.isoformat(), Example(PROMPT.format(text=text), day.isoformat()))
