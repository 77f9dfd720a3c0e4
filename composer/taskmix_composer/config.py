"""Schemes: how a delta is encoded, as a value with one spelling."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from taskmix_composer.errors import InvalidSchemeError

INTEGER_BITS: Mapping[str, int] = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}
KNOWN_SCHEMES = ("dense", "dense16", *INTEGER_BITS, "lowrank")
DEFAULT_GROUP = 64
_SPELLING = re.compile(r"(?P<name>[a-z][a-z0-9]*)(?:\((?P<options>[^()]*)\))?")


@dataclass(frozen=True, slots=True)
class Scheme:
    """A scheme's name and, for integer schemes, the columns that share a scale (0 = per tensor)."""

    name: str
    group: int = DEFAULT_GROUP

    def __post_init__(self) -> None:
        if self.name not in KNOWN_SCHEMES:
            known = ", ".join(KNOWN_SCHEMES)
            raise InvalidSchemeError(f"scheme {self.name!r} is not available; choose from {known}")
        if self.name not in INTEGER_BITS:
            object.__setattr__(self, "group", 0)
        if self.group < 0:
            raise InvalidSchemeError(f"group must be 0 (per tensor) or more, got {self.group}")

    @classmethod
    def parse(cls, text: str, *, group: int | None = None) -> "Scheme":
        """Read `int4` or `int4(group=32)`; `group` is the same option given beside the text."""
        match = _SPELLING.fullmatch(text.strip())
        if match is None:
            raise InvalidSchemeError(
                f"cannot read scheme {text!r}; write a name such as int4 or int4(group=64)"
            )
        name = match["name"]
        known = cls(name)
        stated = _options(name, match["options"])
        if group is not None and stated.setdefault("group", group) != group:
            raise InvalidSchemeError(f"{text} and a group of {group} contradict; give one of them")
        if stated and name not in INTEGER_BITS:
            raise InvalidSchemeError(f"scheme {name} takes no group; leave it out")
        return cls(name, stated.get("group", known.group))

    @property
    def bits(self) -> int:
        """Bits of a code; only integer schemes have codes."""
        return INTEGER_BITS[self.name]

    @property
    def is_integer(self) -> bool:
        return self.name in INTEGER_BITS

    def __str__(self) -> str:
        return f"{self.name}(group={self.group})" if self.is_integer else self.name


def _options(name: str, text: str | None) -> dict[str, int]:
    """Read `key=integer` pairs separated by commas."""
    options = {}
    for pair in text.split(",") if text else []:
        key, _, value = (piece.strip() for piece in pair.partition("="))
        if key != "group":
            raise InvalidSchemeError(f"scheme {name} has no option {key!r}; it knows only group")
        if not re.fullmatch("[0-9]{1,9}", value):
            raise InvalidSchemeError(f"scheme {name}: group must be a whole number, got {value!r}")
        options[key] = int(value)
    return options
