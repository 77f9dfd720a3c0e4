"""Which arm a subject gets: a pure function of the experiment's salt and the subject.

A keyed hash gives each subject two points in [0, 1) that know nothing of each other: one says
whether it takes part, the other which arm it gets. Points and limits are integers, so that no
rounding can move a subject. Every replica, process and release gives the same answer; the tests
pin it.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from fractions import Fraction
from hashlib import blake2b
from itertools import accumulate

from taskmix_server.errors import InvalidRequestError

# How far shares may be from summing to 1, for thirds written as decimals.
TOLERANCE = Decimal("1e-6")
MAX_DECIMALS = 18

_NUM_POINTS = 1 << 64
_POINT_BYTES = 8

Number = Decimal | float | str


class Unit(StrEnum):
    """What was randomized; the value is mixed into the hash (blake2b's `person`)."""

    SUBJECT = "subject"
    REQUEST = "request"


@dataclass(frozen=True, slots=True)
class Assignment:
    """The arm that a unit gets, None for one outside the ramp.

    Only subjects that were drawn, neither overridden nor assigned per request, belong in
    statistics.
    """

    arm: str | None
    unit: Unit = Unit.SUBJECT
    is_override: bool = False

    @property
    def is_exposed(self) -> bool:
        return self.arm is not None

    @property
    def is_counted(self) -> bool:
        """Whether subject-level statistics may use it."""
        return self.is_exposed and self.unit is Unit.SUBJECT and not self.is_override


@dataclass(frozen=True, slots=True)
class Split:
    """How an experiment divides its subjects.

    arms: name and share of each, kept sorted by name, so that the order they were written in
    means nothing. ramp: the share of all subjects that take part. overrides: subject and arm of
    those who are not drawn; they take part whatever the ramp. Shares and the ramp may be given as
    decimals, text or floats, and are kept as decimals; a float means the shortest decimal that
    reads as it.
    """

    salt: str
    arms: tuple[tuple[str, Number], ...]
    ramp: Number = 1
    overrides: tuple[tuple[str, str], ...] = ()
    _names: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _ends: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _exposed_end: int = field(init=False, repr=False, compare=False)
    _override_of: dict[str, str] = field(init=False, repr=False, compare=False)
    _key: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.salt:
            raise InvalidRequestError("an experiment needs a salt; give a random text of its own")
        arms = tuple(
            sorted((name, _decimal(share, f"{name}'s share")) for name, share in self.arms)
        )
        ramp = _decimal(self.ramp, "the ramp")
        names = tuple(name for name, _ in arms)
        _check_arms(names, [share for _, share in arms])
        _check_overrides(self.overrides, names)
        object.__setattr__(self, "arms", arms)
        object.__setattr__(self, "ramp", ramp)
        object.__setattr__(self, "overrides", tuple(sorted(self.overrides)))
        object.__setattr__(self, "_names", names)
        object.__setattr__(self, "_ends", _ends([share for _, share in arms]))
        object.__setattr__(self, "_exposed_end", _end(Fraction(ramp)))
        object.__setattr__(self, "_override_of", dict(self.overrides))
        object.__setattr__(self, "_key", blake2b(_bytes(self.salt, "salt")).digest())

    def assign(self, subject: str) -> Assignment:
        """The arm of a subject: the same for ever, and kept while the ramp is raised."""
        if not subject:
            raise InvalidRequestError("an empty subject cannot be assigned; leave it out instead")
        if subject in self._override_of:
            return Assignment(self._override_of[subject], is_override=True)
        return self._drawn(subject, Unit.SUBJECT)

    def assign_request(self, request_id: str) -> Assignment:
        """The arm of a request that names no subject; the next one may get another."""
        return self._drawn(request_id, Unit.REQUEST)

    def _drawn(self, unit_id: str, unit: Unit) -> Assignment:
        exposure, place = _points(self._key, unit_id, unit)
        if exposure >= self._exposed_end:
            return Assignment(None, unit)
        return Assignment(self._names[bisect_right(self._ends, place)], unit)


def _points(key: bytes, unit_id: str, unit: Unit) -> tuple[int, int]:
    """Two independent, uniform 64-bit integers for a unit; key: 64 bytes, hashed from a salt.

    Keyed BLAKE2b is a pseudorandom function (RFC 7693; Aumasson et al. 2013), so the halves of a
    digest, and digests under two keys, are as good as drawn apart.
    """
    digest = blake2b(
        _bytes(unit_id, unit), digest_size=2 * _POINT_BYTES, key=key, person=unit.encode()
    ).digest()
    exposure = int.from_bytes(digest[:_POINT_BYTES], "big")
    return exposure, int.from_bytes(digest[_POINT_BYTES:], "big")


def _ends(shares: Sequence[Decimal]) -> tuple[int, ...]:
    """Where each arm's points end; a sum within the tolerance is stretched to 1."""
    exact = [Fraction(share) for share in shares]
    total = sum(exact)
    return tuple(_end(so_far / total) for so_far in accumulate(exact))


def _end(share: Fraction) -> int:
    """The number of points below a share: the least integer that is no smaller."""
    return -(-share.numerator * _NUM_POINTS // share.denominator)


def _decimal(number: Number, name: str) -> Decimal:
    """A number in [0, 1] without rounding."""
    try:
        decimal = Decimal(str(number))
    except InvalidOperation as error:
        raise InvalidRequestError(
            f"{name} is {number!r:.40}, which is no number; write one between 0 and 1"
        ) from error
    if not (decimal.is_finite() and 0 <= decimal <= 1):
        raise InvalidRequestError(f"{name} is {number!s:.40}; it must be between 0 and 1")
    if -int(decimal.as_tuple().exponent) > MAX_DECIMALS:
        raise InvalidRequestError(f"{name} has more than {MAX_DECIMALS} decimals; round it")
    return decimal


def _check_arms(names: Sequence[str], shares: Sequence[Decimal]) -> None:
    if len(set(names)) < len(names):
        raise InvalidRequestError(f"arms must have different names, got {', '.join(names)}")
    total = sum(shares, Decimal(0))
    if abs(total - 1) > TOLERANCE:
        raise InvalidRequestError(f"the arms' shares sum to {total}; change them to sum to 1")


def _check_overrides(overrides: Sequence[tuple[str, str]], names: Sequence[str]) -> None:
    subjects = [subject for subject, _ in overrides]
    if len(set(subjects)) < len(subjects):
        raise InvalidRequestError("a subject is overridden twice; keep one of the overrides")
    for subject, arm in overrides:
        if arm not in names:
            raise InvalidRequestError(
                f"the override of {subject!r:.80} names arm {arm!r:.80}, which does not exist; "
                f"the arms are {', '.join(names)}"
            )


def _bytes(text: str, name: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"the {name} {text!r:.80} is no valid Unicode text") from error
