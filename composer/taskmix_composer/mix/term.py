"""One term of a mix: a task vector and its coefficient for every tensor of the model."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from taskmix_composer.errors import InvalidMixError

MAX_NAME_LENGTH = 64
MAX_OVERRIDES = 4096
MAX_NUMBER = float.fromhex("0x1.fffffep+127")  # the largest float32
RESERVED_NAMES = frozenset({"base", "experiment"})
Key = TypeVar("Key", int, str)

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.([0-9]{1,9})(?:\.|$)")


def check_name(name: str) -> str:
    """Return `name` if a task may bear it."""
    if _NAME.fullmatch(name) is None:
        raise InvalidMixError(
            f"{name!r} is not a task name; use lower-case letters, digits, '.', '_' and '-', "
            "starting with a letter or digit"
        )
    if len(name) > MAX_NAME_LENGTH:
        raise InvalidMixError(f"task name {name[:16]}... is longer than {MAX_NAME_LENGTH}")
    if name in RESERVED_NAMES:
        raise InvalidMixError(f"{name!r} is reserved and cannot name a task; choose another name")
    return name


def check_number(value: object, where: str) -> float:
    """Return `value` as a float within float32's range, with -0.0 as 0.0.

    `where` names it in the error. Deltas are scaled in float32: more would become infinite there.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidMixError(f"{where} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) <= MAX_NUMBER:
        raise InvalidMixError(f"{where} must be finite and within float32, got {value!r:.40}")
    return number + 0.0


def layer_of(tensor: str) -> int | None:
    """The layer a tensor belongs to: the number after its first `layers`, `h` or `blocks`."""
    match = _LAYER.search(tensor)
    return int(match[1]) if match else None


@dataclass(frozen=True, slots=True)
class Term:
    """A function from tensors to coefficients of one task vector, in canonical form.

    A tensor named in `by_tensor` has that coefficient, else one whose layer is in `by_layer` has
    that one, else `coefficient`. All three hold effective values, not factors of one another.
    Overrides are sorted, and those that change nothing are dropped: equal functions are equal
    terms. A mask is a plane's name, with a leading `!` for its complement; masks intersect.
    """

    task: str
    coefficient: float = 1.0
    masks: tuple[str, ...] = ()
    by_layer: tuple[tuple[int, float], ...] = ()
    by_tensor: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        check_name(self.task)
        for mask in self.masks:
            check_name(mask.removeprefix("!"))
        by_layer = _overrides(self.by_layer, f"layer of {self.task}")
        by_tensor = _overrides(self.by_tensor, f"tensor of {self.task}")
        default = check_number(self.coefficient, f"coefficient of {self.task}")
        by_layer = {layer: value for layer, value in by_layer.items() if value != default}
        inherited = dict[int | None, float](by_layer.items())
        by_tensor = {
            tensor: value
            for tensor, value in by_tensor.items()
            if value != inherited.get(layer_of(tensor), default)
        }
        canonical = {
            "coefficient": default,
            "masks": tuple(sorted(set(self.masks))),
            "by_layer": tuple(sorted(by_layer.items())),
            "by_tensor": tuple(sorted(by_tensor.items())),
        }
        for field, value in canonical.items():
            object.__setattr__(self, field, value)

    @property
    def is_zero(self) -> bool:
        """Whether the coefficient is zero for every tensor."""
        return not (self.coefficient or self.by_layer or self.by_tensor)

    def coefficient_for(self, tensor: str) -> float:
        """The coefficient of this task's delta for one tensor of the model."""
        return self.coefficients_for((tensor,))[0]

    def coefficients_for(self, tensors: Sequence[str]) -> list[float]:
        """The coefficients of this task's deltas for these tensors, in their order."""
        by_layer = dict[int | None, float](self.by_layer)
        by_tensor = dict(self.by_tensor)
        return [
            by_tensor.get(tensor, by_layer.get(layer_of(tensor), self.coefficient))
            for tensor in tensors
        ]


def add_terms(terms: Iterable[Term]) -> Term:
    """The pointwise sum of terms that share a task and masks, each value rounded once."""
    addends = tuple(terms)
    layers = sorted({layer for term in addends for layer, _ in term.by_layer})
    tensors = sorted({tensor for term in addends for tensor, _ in term.by_tensor})
    task = addends[0].task

    def sums(names: Sequence[str]) -> list[float]:
        columns = zip(*(term.coefficients_for(names) for term in addends), strict=True)
        return [_exact_sum(column) for column in columns]

    return Term(
        task,
        _exact_sum(term.coefficient for term in addends),
        addends[0].masks,
        tuple(zip(layers, sums([f"layers.{layer}" for layer in layers]), strict=True)),
        tuple(zip(tensors, sums(tensors), strict=True)),
    )


def _exact_sum(values: Iterable[float]) -> float:
    """A sum that does not depend on the order of its addends, each of them within float32."""
    return float(sum(map(Fraction, values), Fraction()))


def _overrides(pairs: tuple[tuple[Key, float], ...], where: str) -> dict[Key, float]:
    """Check override values and that no key repeats."""
    values = {key: check_number(value, f"coefficient for {where}") for key, value in pairs}
    if len(values) != len(pairs):
        raise InvalidMixError(f"a {where} is named twice; name each once")
    if len(values) > MAX_OVERRIDES:
        raise InvalidMixError(f"more than {MAX_OVERRIDES} overrides by {where}; use fewer")
    return values
