"""Merge methods that need scalars alone: a request names one, and a bank expands it to a mix."""

from taskmix_composer.recipe.expansion import expand, expanded
from taskmix_composer.recipe.geometry import Geometry
from taskmix_composer.recipe.methods import SCALAR_METHODS
from taskmix_composer.recipe.value import Recipe, mix_from_json, parse_mix

__all__ = [
    "SCALAR_METHODS",
    "Geometry",
    "Recipe",
    "expand",
    "expanded",
    "mix_from_json",
    "parse_mix",
]
