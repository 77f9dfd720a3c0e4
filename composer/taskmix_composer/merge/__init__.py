"""Merging task vectors offline: one table by method.

These methods look at the values of all the vectors they merge, so their results hold for that set
of tasks alone.
"""

from collections.abc import Iterable, Mapping

from taskmix_composer.errors import InvalidMethodError
from taskmix_composer.merge.breadcrumbs import breadcrumbs
from taskmix_composer.merge.dare import dare, dare_mergekit
from taskmix_composer.merge.emr import agreement, emr, unified
from taskmix_composer.merge.magmax import magmax
from taskmix_composer.merge.method import MergeMethod
from taskmix_composer.merge.parameters import (
    DROPPED,
    KEPT,
    NOT_NEGATIVE,
    Value,
    choice,
    number,
    numbers,
    truth,
    whole,
)
from taskmix_composer.merge.selection import Computed, Selection
from taskmix_composer.merge.singular import iso_c, tsv_m
from taskmix_composer.merge.tall import consensus_ta, consensus_ties, tall_masks
from taskmix_composer.merge.ties import ties, ties_mergekit
from taskmix_composer.merge.vectors import Vectors

__all__ = [
    "MERGE_METHODS",
    "Computed",
    "MergeMethod",
    "Selection",
    "Value",
    "Vectors",
    "agreement",
    "parse_params",
    "tall_masks",
    "unified",
]

_TIES = "Yadav et al. 2023, arXiv:2306.01708"
_DARE = "Yu et al. 2023, arXiv:2311.03099"
_TALL = "Wang et al. 2024, arXiv:2405.07813"

_CONSENSUS = (
    whole("prun_thre_k", 2),
    numbers("tall_mask_lambda", 1.0, NOT_NEGATIVE),
    number("lambda", 1.0),
)
_MERGEKIT = (numbers("weight", 1.0), number("lambda", 1.0))

_METHODS = (
    MergeMethod(
        "ties",
        f"{_TIES}; the authors' code",
        ties,
        (
            number("density", 0.2, KEPT),
            choice("merge_func", "mean", {"mean": "mean", "sum": "sum"}),
            number("lambda", 1.0),
        ),
        planes_if={"merge_func": "sum"},
    ),
    MergeMethod(
        "ties-mergekit",
        f"{_TIES}; mergekit's ties",
        ties_mergekit,
        (numbers("density", 1.0, KEPT), truth("normalize", default=True), *_MERGEKIT),
        planes_if={"normalize": False},
    ),
    MergeMethod(
        "dare",
        f"{_DARE}; the authors' rescale",
        dare,
        (number("density", 0.1, KEPT), number("lambda", 1.0), whole("seed", 0)),
    ),
    MergeMethod(
        "dare-mergekit",
        f"{_DARE}; mergekit's dare_linear",
        dare_mergekit,
        (
            numbers("density", 1.0, KEPT),
            truth("normalize", default=False),
            *_MERGEKIT,
            whole("seed", 0),
        ),
    ),
    MergeMethod("consensus-ta", _TALL, consensus_ta, _CONSENSUS),
    MergeMethod(
        "consensus-ties", _TALL, consensus_ties, (number("density", 0.2, KEPT), *_CONSENSUS)
    ),
    MergeMethod(
        "breadcrumbs",
        "Davari and Belilovsky 2023, arXiv:2312.06795; mergekit's breadcrumbs",
        breadcrumbs,
        (
            numbers("density", 1.0, KEPT),
            numbers("gamma", 0.01, DROPPED),
            truth("normalize", default=False),
            *_MERGEKIT,
        ),
    ),
    MergeMethod(
        "magmax", "Marczak et al. 2024, arXiv:2407.06322", magmax, (number("lambda", 0.5),)
    ),
    MergeMethod("emr", "Huang et al. 2024, arXiv:2405.17461", emr),
    MergeMethod(
        "tsv-m",
        "Gargiulo et al. 2025, arXiv:2412.00081",
        tsv_m,
        (number("alpha", 1.0),),
        planes_if=None,
    ),
    MergeMethod(
        "iso-c",
        "Marczak et al. 2025, arXiv:2502.04959",
        iso_c,
        (number("scaling_factor", 1.0),),
        planes_if=None,
    ),
)

MERGE_METHODS: Mapping[str, MergeMethod] = {method.name: method for method in _METHODS}


def parse_params(method: str, pairs: Iterable[str]) -> dict[str, Value]:
    """A method's parameters by name, from `name=value` texts; the rest have their defaults."""
    if method not in MERGE_METHODS:
        known = ", ".join(MERGE_METHODS)
        raise InvalidMethodError(
            f"there is no method {method!r} to merge with; choose from {known}"
        )
    return MERGE_METHODS[method].parse(pairs)
