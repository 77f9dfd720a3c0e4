"""From a method and a bank to the mix that it stands for."""

from taskmix_composer.bank import Bank
from taskmix_composer.errors import MissingGramError
from taskmix_composer.mix import Mix
from taskmix_composer.recipe.geometry import Geometry
from taskmix_composer.recipe.methods import SCALAR_METHODS
from taskmix_composer.recipe.value import Recipe


def expand(recipe: Recipe, geometry: Geometry) -> Mix:
    """The ordinary mix of a recipe; `geometry` is that of the bank's tasks.

    Raises UnknownTaskError, or MissingGramError if lengths are needed and were not measured.
    """
    vectors = geometry.chosen(recipe.tasks)
    if recipe.is_measured and vectors.table is None:
        raise MissingGramError(
            f"{recipe.method} computes from the inner products of task vectors and this bank has "
            "no table of them; `taskmix bank recode` writes one, and so does building it again"
        )
    method = SCALAR_METHODS[recipe.method]
    params = dict(recipe.params)
    arguments = {parameter.argument: params[parameter.name] for parameter in method.parameters}
    return Mix(method.formula(vectors, **arguments))


def expanded(wanted: Mix | Recipe, bank: Bank) -> Mix:
    """A mix as it is, or the one that a recipe stands for under a bank."""
    return wanted if isinstance(wanted, Mix) else expand(wanted, Geometry.of(bank))
