"""Mixes as one line of text: `math:0.6+code:-0.3`."""

import re

from taskmix_composer.errors import InvalidMixError
from taskmix_composer.mix.term import Term, check_name, check_number

MAX_CHARACTERS = 4096
_SPACE = re.compile(r"[ \t\r\n]*")
_NAME = re.compile(r"[a-z0-9._-]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_CONTEXT = 60


def parse_expression(text: str) -> tuple[Term, ...]:
    """Read `task[:coefficient]` terms joined by `+`, or `base` for none.

    A bare task has coefficient 1. Spaces may stand around names, `:` and `+`.
    """
    if len(text) > MAX_CHARACTERS:
        raise InvalidMixError(
            f"a mix expression has at most {MAX_CHARACTERS} characters, got {len(text)}",
            position=MAX_CHARACTERS,
        )
    if text.strip(" \t\r\n") == "base":
        return ()
    term, position = _read_term(text, 0)
    terms = [term]
    while position < len(text):
        if text[position] != "+":
            raise _error(text, position, "expected '+' and another task, or the end")
        term, position = _read_term(text, position + 1)
        terms.append(term)
    return tuple(terms)


def _read_term(text: str, position: int) -> tuple[Term, int]:
    """Read one term and the space around it; return where the next character is."""
    start = _skip_space(text, position)
    name = _NAME.match(text, start)
    if name is None:
        raise _error(text, start, "expected a task name (lower case), or 'base' alone")
    try:
        check_name(name[0])
    except InvalidMixError as error:
        raise _error(text, start, str(error)) from None
    position = _skip_space(text, name.end())
    if text[position : position + 1] != ":":
        return Term(name[0]), position
    start = _skip_space(text, position + 1)
    number = _NUMBER.match(text, start)
    if number is None:
        raise _error(text, start, "expected a number such as 0.6 or -1e-3")
    try:
        coefficient = check_number(float(number[0]), "coefficient")
    except InvalidMixError as error:
        raise _error(text, start, str(error)) from None
    return Term(name[0], coefficient), _skip_space(text, number.end())


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _error(text: str, position: int, message: str) -> InvalidMixError:
    """An error that shows the expression with a caret under the character at `position`."""
    start = max(0, position - _CONTEXT)
    excerpt = text[start : position + _CONTEXT]
    shown = "".join(character if character.isprintable() else " " for character in excerpt)
    caret = " " * (position - start) + "^"
    return InvalidMixError(f"{message}\n  {shown}\n  {caret}", position=position)
