"""What scalar methods give, against each method carried out on the vectors themselves."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from taskmix_composer.bank import Bank
from taskmix_composer.errors import InvalidMixError, MissingGramError, UnknownTaskError
from taskmix_composer.mix import Mix
from taskmix_composer.recipe import SCALAR_METHODS, Geometry, Recipe, expand, expanded, parse_mix

TASKS = ("a", "b", "c", "d")
TENSORS = (
    "lm_head.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.mlp.up_proj.weight",
    "model.layers.1.norm.weight",
    "model.layers.2.mlp.up_proj.weight",
    "model.norm.weight",
)
NUM_WEIGHTS = 7
PREFACTORS = torch.tensor([1.0, 0.3, 2.0, 1e-3], dtype=torch.float64)
# A few ulp of float64 for each sum over tensors, tasks and steps.
RELATIVE = 1e-12

Vectors = Tensor
"""Task vectors: float64 [num_tensors, num_tasks, NUM_WEIGHTS]."""


def make_vectors(seed: int = 0) -> Vectors:
    """Vectors of unequal lengths with a common part; task `c` leaves the first tensor alone."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(TENSORS), len(TASKS), NUM_WEIGHTS)
    private = torch.randn(shape, generator=generator, dtype=torch.float64)
    common = torch.randn((len(TENSORS), 1, NUM_WEIGHTS), generator=generator, dtype=torch.float64)
    vectors = PREFACTORS[:, None] * (private + 0.5 * common)
    vectors[0, TASKS.index("c")] = 0.0
    return vectors


def geometry_of(vectors: Vectors, tasks: tuple[str, ...] = TASKS) -> Geometry:
    return Geometry(TENSORS, tasks, vectors @ vectors.transpose(1, 2))


def added(mix: Mix, vectors: Vectors, tasks: Sequence[str] = TASKS) -> Tensor:
    """What a mix adds to the base: float64 [num_tensors, NUM_WEIGHTS]."""
    total = torch.zeros(len(TENSORS), NUM_WEIGHTS, dtype=torch.float64)
    for term in mix.terms:
        for row, tensor in enumerate(TENSORS):
            total[row] += term.coefficient_for(tensor) * vectors[row, tasks.index(term.task)]
    return total


def check(recipe: Recipe, vectors: Vectors, expected: Tensor) -> None:
    actual = added(expand(recipe, geometry_of(vectors)), vectors)
    assert (actual - expected).norm() <= RELATIVE * expected.norm()
    assert expected.norm() > 0.0


def rows(vectors: Vectors, tasks: Sequence[str]) -> list[Tensor]:
    """Each task's vector: float64 [num_tensors, NUM_WEIGHTS]."""
    return [vectors[:, TASKS.index(task)] for task in tasks]


def turned(old: Tensor, new: Tensor, share: float) -> Tensor:
    """Spherical interpolation of two vectors of any shape, linear where it is degenerate."""
    lengths = old.norm() * new.norm()
    cosine = float((old * new).sum() / lengths) if lengths else 1.0
    if abs(cosine) > 0.9995:
        return (1 - share) * old + share * new
    angle = math.acos(cosine)
    return (math.sin((1 - share) * angle) * old + math.sin(share * angle) * new) / math.sin(angle)


@pytest.mark.parametrize("tasks", [("a",), ("a", "c"), ("d", "b", "a", "c")], ids=str)
def test_uniform_methods(tasks: tuple[str, ...]) -> None:
    vectors = make_vectors()
    total = sum(rows(vectors, tasks))
    check(Recipe("task-arithmetic", tasks), vectors, 0.3 * total)
    check(Recipe("task-arithmetic", tasks, (("lambda", 0.7),)), vectors, 0.7 * total)
    check(Recipe("average", tasks), vectors, total / len(tasks))
    check(Recipe("negation", tasks), vectors, -total)
    check(Recipe("negation", tasks, (("lambda", 0.4),)), vectors, -0.4 * total)


def test_analogy() -> None:
    vectors = make_vectors()
    king, man, woman = rows(vectors, ("a", "b", "c"))
    check(Recipe("analogy", ("b", "c", "a")), vectors, king - man + woman)
    doubled = Recipe("analogy", ("b", "c", "a"), (("lambda", 2.0),))
    check(doubled, vectors, 2.0 * (king - man + woman))


@pytest.mark.parametrize(
    ("params", "alpha", "beta"),
    [
        ((), 0.5, 0.5),
        ((("alpha", 0.2),), 0.2, 0.8),
        ((("beta", 0.3),), 0.5, 0.3),
        ((("alpha", 0.4), ("beta", -0.1)), 0.4, -0.1),
    ],
    ids=str,
)
def test_lines(params: tuple[tuple[str, float], ...], alpha: float, beta: float) -> None:
    vectors = make_vectors()
    depths = torch.tensor([0.0, 0.0, 0.5, 0.5, 1.0, 0.0], dtype=torch.float64)
    total = sum(rows(vectors, ("a", "d")))
    expected = (alpha + beta * depths)[:, None] * total
    check(Recipe("lines", ("a", "d"), params), vectors, expected)


@pytest.mark.parametrize("tensors", [("w", "model.layers.0.w"), ("v", "w")], ids=str)
def test_lines_without_depth(tensors: tuple[str, ...]) -> None:
    mix = expand(Recipe("lines", ("a", "b")), Geometry(tensors, TASKS, None))
    assert mix == Mix.of({"a": 0.5, "b": 0.5})


@pytest.mark.parametrize("tasks", [("a",), ("a", "c"), TASKS], ids=str)
def test_metagpt(tasks: tuple[str, ...]) -> None:
    vectors = make_vectors()
    chosen = rows(vectors, tasks)
    total = sum(vector.norm() ** 2 for vector in chosen)
    expected = sum(vector.norm() ** 2 / total * vector for vector in chosen)
    check(Recipe("metagpt", tasks), vectors, expected)


def test_norm_scaled() -> None:
    vectors = make_vectors()
    chosen = rows(vectors, ("a", "c", "d"))
    recipe = Recipe("norm-scaled", ("a", "c", "d"), (("eta", 0.2), ("per_tensor", False)))
    check(recipe, vectors, sum(0.2 * vector / vector.norm() for vector in chosen))
    by_tensor = Recipe("norm-scaled", ("a", "c", "d"))
    expected = sum(0.07 * torch.nn.functional.normalize(vector, dim=1) for vector in chosen)
    check(by_tensor, vectors, expected)
    (scaled,) = (term for term in expand(by_tensor, geometry_of(vectors)).terms if term.task == "c")
    assert [tensor for tensor, _ in scaled.by_tensor] == list(TENSORS[1:])


@given(st.floats(0.0, 1.0), st.booleans(), st.integers(0, 3))
def test_slerp_of_two(t: float, per_tensor: bool, seed: int) -> None:
    vectors = make_vectors(seed)
    recipe = Recipe("slerp", ("d", "c"), (("t", t), ("per_tensor", per_tensor)))
    start, end = rows(vectors, ("d", "c"))
    if per_tensor:
        pairs = zip(start, end, strict=True)
        check(recipe, vectors, torch.stack([turned(old, new, t) for old, new in pairs]))
    else:
        check(recipe, vectors, turned(start, end, t))


@given(st.permutations(TASKS), st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4))
def test_slerp_of_many(tasks: list[str], weights: list[float]) -> None:
    vectors = make_vectors()
    mixed, *others = rows(vectors, tasks)
    for step, vector in enumerate(others, start=1):
        mixed = turned(mixed, vector, weights[step] / sum(weights[: step + 1]))
    recipe = Recipe("slerp", tuple(tasks), (("weights", tuple(weights)),))
    # The angle of nearly parallel vectors, and with it the result, is known to fewer digits.
    actual = added(expand(recipe, geometry_of(vectors)), vectors)
    assert (actual - mixed).norm() <= 1e-10 * mixed.norm()


def test_slerp_defaults() -> None:
    vectors = make_vectors()
    start, end = rows(vectors, ("a", "b"))
    check(Recipe("slerp", ("a", "b")), vectors, turned(start, end, 0.5))
    check(Recipe("slerp", ("a",)), vectors, start)


@pytest.mark.parametrize(
    "make",
    [
        torch.zeros_like,
        lambda a: 3.0 * a,
        lambda a: -a,
        lambda a: -0.5 * a,
        lambda a: a + 1e-9 * torch.ones_like(a),
    ],
    ids=["zero", "parallel", "opposite", "opposite and shorter", "almost equal"],
)
@pytest.mark.parametrize("is_first", [False, True], ids=["second", "first"])
def test_slerp_without_an_angle_is_linear(make: Callable[[Tensor], Tensor], is_first: bool) -> None:
    vectors = make_vectors()
    vectors[:, 1] = make(vectors[:, 0])
    tasks = ("b", "a") if is_first else ("a", "b")
    mix = expand(Recipe("slerp", tasks, (("t", 0.25),)), geometry_of(vectors))
    assert mix == Mix.of(dict(zip(tasks, (0.75, 0.25), strict=True)))


def test_a_sum_that_vanished_has_no_direction() -> None:
    vectors = make_vectors()
    vectors[:, 1] = -vectors[:, 0]
    mix = expand(Recipe("slerp", ("a", "b", "c"), (("weights", (1, 1, 2)),)), geometry_of(vectors))
    assert mix == Mix.of({"a": 0.25, "b": 0.25, "c": 0.5})


def test_vectors_of_nothing() -> None:
    nothing = geometry_of(torch.zeros(len(TENSORS), len(TASKS), NUM_WEIGHTS, dtype=torch.float64))
    for method in ("metagpt", "norm-scaled"):
        assert expand(Recipe(method, TASKS), nothing).is_base
    halves = Mix.of({"a": 0.5, "b": 0.5})
    assert expand(Recipe("slerp", ("a", "b")), nothing) == halves


@pytest.mark.parametrize(
    ("tasks", "params", "message"),
    [
        (("a", "b", "c"), (("t", 0.5),), "t of slerp is for two tasks"),
        (("a", "b"), (("t", 0.5), ("weights", (1, 1))), "t of slerp is for two tasks"),
        (("a", "b"), (("weights", (1, 1, 1)),), "one per task, in their order; got 3 for 2"),
        (("a", "b"), (("weights", ()),), "one per task, in their order; got 0 for 2"),
    ],
    ids=str,
)
def test_shares_that_do_not_fit(
    tasks: tuple[str, ...], params: tuple[tuple[str, object], ...], message: str
) -> None:
    with pytest.raises(InvalidMixError, match=message):
        expand(Recipe("slerp", tasks, params), geometry_of(make_vectors()))


def test_tensors_beyond_what_a_term_can_name() -> None:
    names = tuple(f"experts.{number:05}.weight" for number in range(4097))
    table = torch.ones(len(names), 1, 1, dtype=torch.float64)
    with pytest.raises(InvalidMixError, match=r"4097 tensors.*set per_tensor to false"):
        expand(Recipe("norm-scaled", ("a",)), Geometry(names, ("a",), table))
    whole = Recipe("norm-scaled", ("a",), (("eta", 1.0), ("per_tensor", False)))
    mix = expand(whole, Geometry(names, ("a",), table))
    assert mix.terms[0].coefficient == pytest.approx(4097**-0.5, rel=1e-15)


def test_a_length_too_small_to_divide_by() -> None:
    table = torch.full((1, 1, 1), 1e-90, dtype=torch.float64)
    with pytest.raises(InvalidMixError, match="finite and within float32"):
        expand(Recipe("norm-scaled", ("a",)), Geometry(("w",), ("a",), table))


@pytest.mark.parametrize("name", SCALAR_METHODS)
def test_a_task_that_the_bank_lacks(name: str) -> None:
    recipe = Recipe(name, ("a", "law", "b"))
    with pytest.raises(UnknownTaskError, match="'law'; it has a, b, c, d"):
        expand(recipe, geometry_of(make_vectors()))


@pytest.mark.parametrize("name", SCALAR_METHODS)
def test_only_measured_methods_need_the_table(name: str) -> None:
    recipe = Recipe(name, ("a", "b", "c"))
    unmeasured = Geometry(TENSORS, TASKS, None)
    if recipe.is_measured:
        with pytest.raises(MissingGramError, match=f"{name} computes.*bank recode"):
            expand(recipe, unmeasured)
    else:
        assert expand(recipe, unmeasured) == expand(recipe, geometry_of(make_vectors()))


def test_the_order_of_tasks_and_tensors_does_not_show() -> None:
    vectors = make_vectors()
    mix = expand(Recipe("metagpt", TASKS), geometry_of(vectors))
    again = expand(Recipe("metagpt", TASKS), geometry_of(vectors.flip(0)))
    assert mix.canonical_json() == again.canonical_json()
    backward = geometry_of(vectors.flip(1), tuple(reversed(TASKS)))
    assert expand(Recipe("metagpt", tuple(reversed(TASKS))), backward) == mix


def test_a_bank_on_disk(bank: Path, base: Path, math: Path, code: Path) -> None:
    origin = load_file(base / "model.safetensors")
    squares = {}
    for task, directory in (("math", math), ("code", code)):
        weights = load_file(directory / "model.safetensors")
        deltas = (weights[name].double() - origin[name].double() for name in origin)
        squares[task] = float(sum(delta.square().sum() for delta in deltas))
    total = sum(squares.values())
    opened = Bank.open(bank)
    mix = expanded(parse_mix('{"method": "metagpt", "tasks": ["math", "code"]}'), opened)
    actual = {term.task: term.coefficient for term in mix.terms}
    assert actual == pytest.approx({task: square / total for task, square in squares.items()})
    opened.check_mix(expanded(Recipe("norm-scaled", ("math", "code")), opened))
    opened.check_mix(expanded(Recipe("lines", ("math", "code")), opened))
    plain = Mix.parse("math:0.5")
    assert expanded(plain, opened) is plain
