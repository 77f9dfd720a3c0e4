"""Designs, a clock, and an author for tests of experiments."""

from datetime import UTC, datetime, timedelta
from typing import Any

from taskmix_composer.mix import Mix
from taskmix_server.experiments.design import Arm, Design
from taskmix_server.experiments.experiment import Experiment
from taskmix_server.experiments.outcome import Measured
from taskmix_server.tenancy.audit import Author

AUTHOR = Author("ops", "0123456789ab", "a request")
MATH, CODE = Mix.parse("math"), Mix.parse("math:0.6+code:0.4")


class Clock:
    """The time that a test sets."""

    def __init__(self) -> None:
        self.now = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **parts: float) -> None:
        self.now += timedelta(**parts)


def design(name: str = "tone", *shares: float, **fields: Any) -> Design:
    """`control` with `math`, `mixed` with both; more arms for more than two shares."""
    shares = shares or (0.5, 0.5)
    names = ("control", "mixed", *(f"arm-{number}" for number in range(2, len(shares))))
    mixes = (MATH, *(CODE,) * (len(shares) - 1))
    arms = tuple(
        Arm(arm, mix, f"digest of {mix}", share)
        for arm, mix, share in zip(names, mixes, shares, strict=True)
    )
    return Design(name, arms, **fields)


def draft(name: str = "tone", *shares: float, ramp: float = 100.0, **fields: Any) -> Experiment:
    return Experiment(design(name, *shares, **fields), ramp=ramp)


def measured(experiment: Experiment, subject: str, at: datetime, **fields: Any) -> Measured:
    """A request of a subject, under the arm that the hash gives it."""
    drawn = experiment.split.assign(subject) if subject else None
    defaults: dict[str, Any] = {
        "experiment_id": experiment.id,
        "tenant_id": "",
        "request_id": f"request of {subject}",
        "arm": drawn.arm if drawn else "control",
        "subject": subject,
        "is_override": False,
        "at": at,
        "latency_s": 1.5,
        "ttft_s": 0.5,
        "num_tokens": 8,
        "finish_reason": "stop",
    }
    return Measured(**{**defaults, **fields})
