"""Spherical interpolation of task vectors, from their inner products alone.

Shoemake 1985, "Animating rotation with quaternion curves". Every result is a linear combination
of the vectors, so that iterating needs the coefficients found so far and the Gram matrix.
"""

import math
from collections.abc import Sequence

from taskmix_composer.errors import InvalidMixError
from taskmix_composer.recipe.geometry import Matrix

# mergekit's DOT_THRESHOLD: beyond it the sine of the angle is too small to divide by.
PARALLEL = 0.9995
# The part of a sum's largest possible length below which rounding has taken its direction.
_LOST = 1e-7


def slerp(gram: Matrix, shares: Sequence[float]) -> list[float]:
    """Coefficients of v, where v starts as the first vector and turns toward each later one.

    shares: how far it turns toward the second, the third and so on, from 0 to 1. Where an angle
    cannot be told (a zero vector, or vectors that are almost parallel), that step is linear.
    """
    mixed = [1.0] + [0.0] * len(shares)
    for newcomer, share in enumerate(shares, start=1):
        kept, added = _arc(_cosine(gram, mixed, newcomer), share)
        mixed = [kept * value for value in mixed]
        mixed[newcomer] = added
    return mixed


def shares_of(
    num_tasks: int, t: float | None, weights: tuple[float, ...] | None
) -> tuple[float, ...]:
    """How far each step turns: `t` for two tasks, or a newcomer's part of the weights so far.

    Equal weights are the default. With these shares parallel vectors give their weighted mean.
    """
    if t is not None and (weights is not None or num_tasks != 2):
        raise InvalidMixError("t of slerp is for two tasks without weights; give weights alone")
    if t is not None:
        return (t,)
    given = (1.0,) * num_tasks if weights is None else weights
    if len(given) != num_tasks:
        raise InvalidMixError(
            f"weights of slerp are one per task, in their order; got {len(given)} for {num_tasks}"
        )
    return tuple(given[last] / math.fsum(given[: last + 1]) for last in range(1, num_tasks))


def _arc(cosine: float, share: float) -> tuple[float, float]:
    """What to multiply the vector at hand and the newcomer by."""
    if abs(cosine) > PARALLEL:
        return 1.0 - share, share
    angle = math.acos(cosine)
    sine = math.sin(angle)
    return math.sin((1.0 - share) * angle) / sine, math.sin(share * angle) / sine


def _cosine(gram: Matrix, mixed: Sequence[float], newcomer: int) -> float:
    """The cosine between sum_i mixed_i v_i and a vector; 1 where one of them has no direction."""
    rows = range(len(mixed))
    square = math.fsum(mixed[i] * gram[i][j] * mixed[j] for i in rows for j in rows)
    reach = math.fsum(abs(mixed[i]) * math.sqrt(gram[i][i]) for i in rows)
    length, new_length = math.sqrt(max(square, 0.0)), math.sqrt(gram[newcomer][newcomer])
    if length <= _LOST * reach or new_length == 0.0:
        return 1.0
    return math.fsum(mixed[i] * gram[i][newcomer] for i in rows) / length / new_length
