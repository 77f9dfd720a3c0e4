"""Settings of merge methods: names, defaults, and what may be given, read from text."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from taskmix_composer.errors import InvalidMethodError

Value = bool | int | float | str | tuple[float, ...]

# Below this mergekit takes a sum of weights for 0.
_SMALLEST_TOTAL = 1e-8


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers that a setting may take, in words and as a test."""

    allowed: str
    holds: Callable[[float], bool]

    def read(self, text: str) -> float:
        """The number that `text` spells; ValueError if it is none of these."""
        value = float(text)
        if not self.holds(value):
            raise ValueError(text)
        return value


FINITE = Range("a number", math.isfinite)
NOT_NEGATIVE = Range("a number that is 0 or more", lambda value: 0 <= value < math.inf)
KEPT = Range("a number above 0 and at most 1", lambda value: 0 < value <= 1)
DROPPED = Range("a number from 0 and below 1", lambda value: 0 <= value < 1)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One setting of a merge method; `read` raises ValueError on text that is not `allowed`."""

    name: str
    default: Value
    allowed: str
    read: Callable[[str], Value]

    def parse(self, text: str) -> Value:
        """The value that `text` spells."""
        try:
            return self.read(text.strip())
        except ValueError:
            raise InvalidMethodError(f"{self.name} must be {self.allowed}, got {text!r}") from None


def number(name: str, default: float, within: Range = FINITE) -> Parameter:
    """One number for all tasks."""
    return Parameter(name, default, within.allowed, within.read)


def numbers(name: str, default: float, within: Range = FINITE) -> Parameter:
    """A number for all tasks, or one per task, separated by commas."""

    def read(text: str) -> tuple[float, ...]:
        return tuple(within.read(piece) for piece in text.split(","))

    allowed = f"{within.allowed}, or one per task separated by commas"
    return Parameter(name, (default,), allowed, read)


def whole(name: str, default: int) -> Parameter:
    """A whole number, not negative, that a 64-bit integer holds."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and int(text) < 1 << 63):
            raise ValueError(text)
        return int(text)

    return Parameter(name, default, "a whole number that is 0 or more", read)


def choice(name: str, default: Value, options: Mapping[str, Value]) -> Parameter:
    """One of the options, by their spelling."""

    def read(text: str) -> Value:
        if text not in options:
            raise ValueError(text)
        return options[text]

    return Parameter(name, default, " or ".join(options), read)


def truth(name: str, *, default: bool) -> Parameter:
    """True or false."""
    return choice(name, default, {"true": True, "false": False})


def spell(value: Value) -> str:
    """The text that reads as `value`."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def per_task(name: str, values: tuple[float, ...], num_tasks: int) -> tuple[float, ...]:
    """One value per task, from one for all or as many as there are tasks."""
    if len(values) == 1:
        return values * num_tasks
    if len(values) != num_tasks:
        raise InvalidMethodError(
            f"{name} has {len(values)} values for {num_tasks} tasks; give one for all of them, or "
            "one per task in the order of the tasks"
        )
    return values


def coefficients_of(
    weight: tuple[float, ...], num_tasks: int, lambda_: float, *, normalize: bool
) -> tuple[float, ...]:
    """What mergekit multiplies each task by where nothing is elected.

    With `normalize` the weights are divided by their sum, unless that is as good as 0.
    """
    weights = per_task("weight", weight, num_tasks)
    total = math.fsum(weights) if normalize else 1.0
    divisor = total if abs(total) >= _SMALLEST_TOTAL else 1.0
    return tuple(lambda_ * value / divisor for value in weights)
