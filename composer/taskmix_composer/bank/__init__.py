"""Banks: directories of encoded deltas for one base model."""

from taskmix_composer.bank.delta import EncodedDelta
from taskmix_composer.bank.reader import Bank

__all__ = ["Bank", "EncodedDelta"]
