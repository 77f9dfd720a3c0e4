"""In which forms tasks are stored: one that is served, and perhaps their own bits beside it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from taskmix_composer.config import OPTIONS, Scheme
from taskmix_composer.errors import InvalidSchemeError
from taskmix_composer.plan import PLANNED, Plan

EXACT = Scheme("exact")
DEFAULT = Scheme("int4")


@dataclass(frozen=True, slots=True)
class Coding:
    """The scheme of each tensor of one task that is coded by itself; None leaves a delta out.

    `name` is what the bank calls it.
    """

    name: str
    default: Scheme
    by_tensor: Mapping[str, Scheme | None] = field(default_factory=dict)

    def of(self, tensor: str) -> Scheme | None:
        return self.by_tensor.get(tensor, self.default)


@dataclass(frozen=True, slots=True)
class Forms:
    """`scheme`, or `plan` in its place, codes what is served.

    is_archived: keep the fine-tunes bit for bit too.
    thresholds: tall's `lambda` of single tasks, where it is not the scheme's.
    is_frozen: code newcomers over the shared vector that is there, and leave it as it is.
    """

    scheme: Scheme = DEFAULT
    plan: Plan | None = None
    is_archived: bool = False
    thresholds: Mapping[str, float] = field(default_factory=dict)
    is_frozen: bool = False

    def __post_init__(self) -> None:
        if self.is_archived and self.scheme == EXACT and self.plan is None:
            raise InvalidSchemeError("exact beside exact stores everything twice; give it once")
        if self.thresholds and (self.plan is not None or self.scheme.name != "tall"):
            raise InvalidSchemeError("only tall takes a lambda for single tasks; leave them out")
        for task, value in self.thresholds.items():
            OPTIONS["tall"]["lambda"].check("tall", threshold_key(task), value)

    @classmethod
    def parse(cls, text: str, *, group: int | None = None) -> "Forms":
        """Read `int4`, `exact,int4` for both, or `@PLAN.json` in place of a scheme."""
        first, comma, rest = (piece.strip() for piece in text.partition(","))
        is_archived = bool(comma) and first == EXACT.name
        served = rest if is_archived else text.strip()
        if served.startswith("@"):
            if group is not None:
                raise InvalidSchemeError("a plan has its own groups; leave the group out")
            return cls(plan=Plan.read(Path(served[1:])), is_archived=is_archived)
        return cls(Scheme.parse(served, group=group), is_archived=is_archived)

    def coding(self, task: str) -> Coding:
        """How a task is coded by itself."""
        if self.plan is not None:
            return Coding(PLANNED, Scheme("dense"), self.plan.of(task))
        return Coding(str(self.scheme), self.scheme)

    def settings(self) -> dict[str, int | float | str]:
        """The scheme's options and the thresholds, for the record."""
        by_task = {threshold_key(task): self.thresholds[task] for task in sorted(self.thresholds)}
        return {**dict(self.scheme.options), **by_task}

    @property
    def is_set_bound(self) -> bool:
        """Whether tasks are coded over a vector that they share."""
        return self.plan is None and self.scheme.is_set_bound


def threshold_key(task: str) -> str:
    """What a record calls the threshold of one task."""
    return f"lambda.{task}"
