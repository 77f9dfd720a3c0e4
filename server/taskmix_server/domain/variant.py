"""A mix bound to the content it names: what is cached, batched and reported."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from taskmix_composer.mix import Mix


@dataclass(frozen=True, slots=True)
class Variant:
    """A resolved mix.

    digest: covers the canonical mix and the content digest of every entry and plane it names, so
        equal digests mean equal weights. entries, planes: content digest by task and by plane.
    is_shadow: of a request that nobody waits for, and that must cost others nothing.
    """

    mix: Mix
    digest: str
    entries: Mapping[str, str]
    bank_revision: str
    changes_head: bool = False
    planes: Mapping[str, str] = field(default_factory=dict)
    is_shadow: bool = False

    @property
    def is_base(self) -> bool:
        return self.mix.is_base
