"""Scalar merge methods, one formula each: coefficients from numbers, no tensor touched.

A formula takes the geometry of the recipe's tasks and returns their terms.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from taskmix_composer.errors import InvalidMixError
from taskmix_composer.mix import Term
from taskmix_composer.mix.term import MAX_OVERRIDES, check_number
from taskmix_composer.recipe.geometry import Geometry, Matrix
from taskmix_composer.recipe.parameters import Parameter, fraction, positives, truth
from taskmix_composer.recipe.slerp import shares_of, slerp

Terms = tuple[Term, ...]


def task_arithmetic(vectors: Geometry, *, lambda_: float) -> Terms:
    """lambda * the sum; Ilharco et al. 2023, arXiv:2212.04089."""
    return _uniform(vectors.tasks, [lambda_] * len(vectors.tasks))


def negation(vectors: Geometry, *, lambda_: float) -> Terms:
    """-lambda * the sum, which takes abilities away; Ilharco et al. 2023, arXiv:2212.04089."""
    return task_arithmetic(vectors, lambda_=-lambda_)


def analogy(vectors: Geometry, *, lambda_: float) -> Terms:
    """A is to B as C is to lambda * (C + B - A); Ilharco et al. 2023, arXiv:2212.04089."""
    return _uniform(vectors.tasks, [-lambda_, lambda_, lambda_])


def average(vectors: Geometry) -> Terms:
    """The mean of the fine-tunes' weights; Wortsman et al. 2022, arXiv:2203.05482."""
    return task_arithmetic(vectors, lambda_=1.0 / len(vectors.tasks))


def lines(vectors: Geometry, *, alpha: float | None, beta: float | None) -> Terms:
    """alpha + beta * l / (L - 1) in layer l of L, and alpha outside of the layers.

    Wang et al. 2025 (LiNeS), arXiv:2410.17146. alpha is 1 / T unless given, which is the paper's
    choice for a plain sum; beta is 1 - alpha unless given, its choice for a single task.
    """
    first = 1.0 / len(vectors.tasks) if alpha is None else alpha
    rise = 1.0 - first if beta is None else beta
    deepest = max(vectors.layers, default=0)
    by_layer = tuple((layer, first + rise * layer / max(deepest, 1)) for layer in vectors.layers)
    return tuple(Term(task, first, by_layer=by_layer) for task in vectors.tasks)


def metagpt(vectors: Geometry) -> Terms:
    """Squared lengths divided by their sum; Zhou et al. 2024 (MetaGPT), arXiv:2406.11385."""
    squares = _diagonal(vectors.whole())
    total = math.fsum(squares)
    return _uniform(vectors.tasks, [square / total if total else 0.0 for square in squares])


def norm_scaled(vectors: Geometry, *, eta: float, per_tensor: bool) -> Terms:
    """eta / the vector's length, per tensor or over the model.

    The data-free coefficients of Wei et al. 2025 (DOGE), arXiv:2501.01230.
    """

    def rescale(gram: Matrix) -> list[float]:
        return [eta / math.sqrt(square) if square else 0.0 for square in _diagonal(gram)]

    return _measured(vectors, rescale, per_tensor=per_tensor)


def spherical(
    vectors: Geometry, *, t: float | None, weights: tuple[float, ...] | None, per_tensor: bool
) -> Terms:
    """Spherical interpolation between the task vectors, in the order they are given."""
    shares = shares_of(len(vectors.tasks), t, weights)
    return _measured(vectors, lambda gram: slerp(gram, shares), per_tensor=per_tensor)


def _uniform(tasks: Iterable[str], coefficients: Sequence[float]) -> Terms:
    return tuple(Term(task, value) for task, value in zip(tasks, coefficients, strict=True))


def _measured(
    vectors: Geometry, coefficients: Callable[[Matrix], Sequence[float]], *, per_tensor: bool
) -> Terms:
    """Coefficients computed from the whole model's inner products, or from each tensor's own."""
    if not per_tensor:
        return _uniform(vectors.tasks, coefficients(vectors.whole()))
    if len(vectors.tensors) > MAX_OVERRIDES:
        raise InvalidMixError(
            f"the base has {len(vectors.tensors)} tensors and a term at most {MAX_OVERRIDES} "
            "coefficients by tensor; set per_tensor to false"
        )
    by_task: Mapping[str, list[tuple[str, float]]] = {task: [] for task in vectors.tasks}
    for tensor, gram in vectors.by_tensor():
        changes = zip(vectors.tasks, coefficients(gram), _diagonal(gram), strict=True)
        for task, value, square in changes:
            if square:
                by_task[task].append((tensor, value))
    return tuple(Term(task, 0.0, by_tensor=tuple(found)) for task, found in by_task.items())


def _diagonal(gram: Matrix) -> list[float]:
    return [row[index] for index, row in enumerate(gram)]


@dataclass(frozen=True, slots=True)
class Method:
    """A formula and what it takes.

    num_tasks: how many tasks it is about, or None for any number. is_ordered: whether their order
    matters. is_measured: whether it asks for lengths and angles.
    """

    formula: Callable[..., Terms]
    parameters: tuple[Parameter, ...] = ()
    num_tasks: int | None = None
    is_ordered: bool = False
    is_measured: bool = False


_PER_TENSOR = Parameter("per_tensor", truth, default=False)
SCALAR_METHODS: Mapping[str, Method] = {
    # 0.3 is the coefficient of the sum that is used where none was searched for.
    "task-arithmetic": Method(task_arithmetic, (Parameter("lambda", check_number, 0.3),)),
    "average": Method(average),
    "negation": Method(negation, (Parameter("lambda", check_number, 1.0),)),
    "analogy": Method(
        analogy, (Parameter("lambda", check_number, 1.0),), num_tasks=3, is_ordered=True
    ),
    "lines": Method(lines, (Parameter("alpha", check_number), Parameter("beta", check_number))),
    "metagpt": Method(metagpt, is_measured=True),
    "norm-scaled": Method(
        norm_scaled,
        (Parameter("eta", check_number, 0.07), Parameter("per_tensor", truth, default=True)),
        is_measured=True,
    ),
    "slerp": Method(
        spherical,
        (Parameter("t", fraction), Parameter("weights", positives), _PER_TENSOR),
        is_ordered=True,
        is_measured=True,
    ),
}
