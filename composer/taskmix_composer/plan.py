"""Plans: a scheme for every tensor of every task, as `bank plan` writes and `bank build` reads."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskmix_composer.config import Scheme
from taskmix_composer.errors import InvalidPlanError, InvalidSchemeError, UnknownTaskError

FORMAT = "taskmix-plan"
VERSION = 1
PLANNED = "planned"


@dataclass(frozen=True, slots=True)
class Plan:
    """A scheme per task and tensor; None leaves a tensor's delta out.

    budget_bytes: what the deltas may take. predicted_bytes, predicted_error: what they were
    estimated to take, and the estimated share of the deltas' effect that is lost, in [0, 1].
    """

    schemes: Mapping[str, Mapping[str, Scheme | None]]
    budget_bytes: int
    predicted_bytes: int
    predicted_error: float

    def of(self, task: str) -> Mapping[str, Scheme | None]:
        """The schemes of one task by tensor."""
        if task not in self.schemes:
            planned = ", ".join(sorted(self.schemes)) or "none"
            raise UnknownTaskError(
                f"the plan has no task {task!r}; it is for {planned} (`bank plan` makes another)"
            )
        return self.schemes[task]

    def write(self, path: Path) -> None:
        """Write PLAN.json."""
        fields = {
            "format": FORMAT,
            "version": VERSION,
            "budget_bytes": self.budget_bytes,
            "predicted_bytes": self.predicted_bytes,
            "predicted_error": self.predicted_error,
            "tasks": {
                task: {name: None if scheme is None else str(scheme) for name, scheme in by.items()}
                for task, by in self.schemes.items()
            },
        }
        path.write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Plan":
        """Read PLAN.json; InvalidPlanError says what is wrong with it."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidPlanError(f"{path} cannot be read ({error}); see `bank plan`") from None
        try:
            return _parse(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError, InvalidSchemeError) as error:
            raise InvalidPlanError(
                f"{path} is not a plan that `bank plan` wrote ({error}); make it again"
            ) from None


def _parse(fields: Any) -> Plan:
    if fields["format"] != FORMAT or fields["version"] != VERSION:
        raise ValueError(f"format {fields['format']!r}, version {fields['version']!r}")
    return Plan(
        {
            str(task): {
                str(name): None if text is None else _own(Scheme.parse(text))
                for name, text in schemes.items()
            }
            for task, schemes in fields["tasks"].items()
        },
        int(fields["budget_bytes"]),
        int(fields["predicted_bytes"]),
        float(fields["predicted_error"]),
    )


def _own(scheme: Scheme) -> Scheme:
    if scheme.is_set_bound:
        raise InvalidSchemeError(f"{scheme} is for whole tasks, not for single tensors")
    return scheme
