"""Parameters of scalar methods: names, defaults, and what may be given."""

import keyword
from collections.abc import Callable
from dataclasses import dataclass

from taskmix_composer.errors import InvalidMixError
from taskmix_composer.mix.form import read_list
from taskmix_composer.mix.term import check_number

Value = bool | float | tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Parameter:
    """One setting of a method. A default of None is worked out from the tasks.

    `check` takes a decoded JSON value and how to call it in an error.
    """

    name: str
    check: Callable[[object, str], Value]
    default: Value = None

    @property
    def argument(self) -> str:
        """The name of the formula's argument."""
        return f"{self.name}_" if keyword.iskeyword(self.name) else self.name

    def read(self, value: object, method: str) -> Value:
        """A value as given, where None is the default."""
        return self.default if value is None else self.check(value, f"{self.name} of {method}")


def fraction(value: object, where: str) -> float:
    """A number from 0 to 1."""
    number = check_number(value, where)
    if not 0.0 <= number <= 1.0:
        raise InvalidMixError(f"{where} must be from 0 to 1, got {number}")
    return number


def positives(value: object, where: str) -> tuple[float, ...]:
    """A list of numbers above 0."""
    given = list(value) if isinstance(value, tuple) else value
    numbers = tuple(check_number(item, where) for item in read_list(given, where))
    if not all(number > 0.0 for number in numbers):
        raise InvalidMixError(f"{where} must be above 0, got {list(numbers)}; leave the task out")
    return numbers


def truth(value: object, where: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise InvalidMixError(f"{where} must be true or false, got {value!r:.80}")
    return value
