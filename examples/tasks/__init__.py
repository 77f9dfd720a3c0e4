"""The tasks, by name."""

from collections.abc import Callable, Mapping
from pathlib import Path

from examples.tasks.dates import load_dates
from examples.tasks.languages import load_languages
from examples.tasks.numbers import load_numbers
from examples.tasks.plurals import load_plurals
from examples.tasks.sentiment import load_sentiment
from examples.tasks.task import Example, Task, TaskError, is_right
from examples.tasks.verbs import load_participles, load_past
from examples.tasks.words import load_words

__all__ = ["TASKS", "Example", "Task", "TaskError", "is_right"]

# Each loader takes the directory where a downloaded source is kept; few need it.
TASKS: Mapping[str, Callable[[Path], Task]] = {
    "sentiment": load_sentiment,
    "plurals": lambda _: load_plurals(),
    "languages": lambda _: load_languages(),
    "dates": lambda _: load_dates(),
    "past": lambda _: load_past(),
    "participles": lambda _: load_participles(),
    "numbers": lambda _: load_numbers(),
    "words": lambda _: load_words(),
}
