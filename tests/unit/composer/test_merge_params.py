import pytest
import torch

from taskmix_composer.errors import InvalidMethodError
from taskmix_composer.merge import MERGE_METHODS, parse_params
from taskmix_composer.merge.parameters import spell
from tests.support.vectors import HeldVectors


def test_parameters_are_read_and_the_rest_have_their_defaults() -> None:
    assert parse_params("ties", ["lambda = 0.3", "merge_func=sum"]) == {
        "density": 0.2,
        "merge_func": "sum",
        "lambda": 0.3,
    }
    assert parse_params("ties-mergekit", ["weight=0.5,-1", "normalize=false", "density=0.4"]) == {
        "density": (0.4,),
        "normalize": False,
        "weight": (0.5, -1.0),
        "lambda": 1.0,
    }
    assert parse_params("dare", ["seed=7"])["seed"] == 7
    assert parse_params("emr", []) == {}


@pytest.mark.parametrize("method", MERGE_METHODS)
def test_defaults_are_allowed_values(method: str) -> None:
    defaults = parse_params(method, [])
    pairs = [f"{name}={spell(value)}" for name, value in defaults.items()]
    assert parse_params(method, pairs) == defaults


@pytest.mark.parametrize(
    ("method", "pair"),
    [
        ("ties", "density=0"),
        ("ties", "density=1.01"),
        ("ties", "density=nan"),
        ("ties", "density=0.1,0.2"),
        ("ties", "lambda=inf"),
        ("ties", "lambda=much"),
        ("ties", "merge_func=max"),
        ("ties-mergekit", "normalize=yes"),
        ("ties-mergekit", "weight=1,"),
        ("breadcrumbs", "gamma=1"),
        ("breadcrumbs", "gamma=-0.1"),
        ("dare", "seed=-1"),
        ("dare", "seed=1.5"),
        ("dare", f"seed={1 << 63}"),
        ("consensus-ta", "prun_thre_k=-1"),
        ("consensus-ta", "tall_mask_lambda=-0.4"),
        ("consensus-ta", "tall_mask_lambda=inf"),
    ],
)
def test_values_out_of_range_are_refused_by_name(method: str, pair: str) -> None:
    name, _, value = pair.partition("=")
    with pytest.raises(InvalidMethodError, match=f"^{name} must be .*got '{value}'$"):
        parse_params(method, [pair])


@pytest.mark.parametrize("pair", ["weight=1", "density", "=1", ""])
def test_unknown_parameters_are_told_what_there_is(pair: str) -> None:
    with pytest.raises(InvalidMethodError, match=r"ties knows density=0\.2, merge_func=mean, la"):
        parse_params("ties", [pair])
    with pytest.raises(InvalidMethodError, match="emr takes none"):
        parse_params("emr", [pair])


def test_a_parameter_given_twice_is_refused() -> None:
    with pytest.raises(InvalidMethodError, match="lambda is given twice"):
        parse_params("ties", ["lambda=1", "lambda=1"])


def test_an_unknown_method_is_told_what_there_is() -> None:
    with pytest.raises(InvalidMethodError, match="choose from ties, ties-mergekit, dare, "):
        parse_params("tie", [])


@pytest.mark.parametrize(
    ("method", "pair"),
    [
        ("ties-mergekit", "density=0.1,0.2"),
        ("ties-mergekit", "weight=1,2"),
        ("dare-mergekit", "weight=1,2,3,4"),
        ("breadcrumbs", "gamma=0.1,0.2"),
        ("consensus-ta", "tall_mask_lambda=1,2"),
        ("consensus-ties", "tall_mask_lambda=1,2"),
    ],
)
def test_as_many_values_as_tasks(method: str, pair: str) -> None:
    vectors = HeldVectors({"a": torch.zeros(3, 2)})
    with pytest.raises(InvalidMethodError, match=f"^{pair.partition('=')[0]} has . values for 3 t"):
        MERGE_METHODS[method].merge(vectors, parse_params(method, [pair]))


@pytest.mark.parametrize(
    ("method", "pairs", "remedy"),
    [
        ("ties", ["merge_func=mean"], "publish a derived entry, or give merge_func=sum$"),
        ("ties-mergekit", [], "publish a derived entry, or give normalize=false$"),
        ("tsv-m", [], "publish a derived entry$"),
        ("iso-c", [], "publish a derived entry$"),
    ],
)
def test_results_that_planes_cannot_say_are_refused(
    method: str, pairs: list[str], remedy: str
) -> None:
    vectors = HeldVectors({"a": torch.ones(2, 2)})
    params = parse_params(method, pairs)
    assert not MERGE_METHODS[method].has_planes(params)
    with pytest.raises(InvalidMethodError, match=remedy):
        MERGE_METHODS[method].planes(vectors, params)
