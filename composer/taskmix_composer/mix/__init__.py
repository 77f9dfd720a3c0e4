"""Mixes: which task vectors to add to the base, and how much of each."""

from taskmix_composer.mix.mixture import BASE_MIX, Mix
from taskmix_composer.mix.term import Term, check_name, layer_of

__all__ = ["BASE_MIX", "Mix", "Term", "check_name", "layer_of"]
