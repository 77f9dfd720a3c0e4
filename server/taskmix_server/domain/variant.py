"""A mix bound to the content it names: what is cached, batched and reported."""

from collections.abc import Mapping
from dataclasses import dataclass

from taskmix_composer.mix import Mix


@dataclass(frozen=True, slots=True)
class Variant:
    """A resolved mix.

    digest: covers the canonical mix and the content digest of every entry it names, so equal
        digests mean equal weights. entries: content digest by task.
    """

    mix: Mix
    digest: str
    entries: Mapping[str, str]
    bank_revision: str
    changes_head: bool = False

    @property
    def is_base(self) -> bool:
        return self.mix.is_base
