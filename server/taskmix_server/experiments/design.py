"""What an experiment compares, fixed for as long as one version of it lives."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from typing import Any

from taskmix_composer.mix import Mix
from taskmix_server.errors import FailedPreconditionError, InvalidRequestError, NotFoundError
from taskmix_server.experiments.assignment import Number, Split
from taskmix_server.experiments.guardrail import Rule
from taskmix_server.experiments.metric import QUANTILES, Metric
from taskmix_server.tenancy.tenant import matches

MAX_ARMS = 16
MAX_SHADOWS = 4
MAX_GUARDRAILS = 32
MAX_OVERRIDES = 1000
MAX_SUBJECT_CHARACTERS = 256

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_GLOB = re.compile(r"[a-z0-9._*?\[\]!()-]{1,64}")


@dataclass(frozen=True, slots=True)
class Arm:
    """A mix and its share of the subjects.

    mix_digest: pins the content that the mix's tasks had when the experiment was made. share: any
    number in [0, 1]; a decimal once it is part of a design.
    """

    name: str
    mix: Mix
    mix_digest: str
    share: Number

    def __post_init__(self) -> None:
        check_name(self.name, "an arm")


@dataclass(frozen=True, slots=True)
class Shadow:
    """A mix that answers copies of requests, unseen. rate: the share of requests, in (0, 1]."""

    name: str
    mix: Mix
    mix_digest: str
    rate: float

    def __post_init__(self) -> None:
        check_name(self.name, "a shadow arm")
        if not 0.0 < self.rate <= 1.0:
            raise InvalidRequestError(
                f"shadow arm {self.name!r} samples {self.rate} of the requests; write a number "
                "above 0 and at most 1"
            )


@dataclass(frozen=True, slots=True)
class Design:
    """What an experiment compares. Its first arm is the control.

    salt: what subjects are hashed with, the name if empty. tenants: globs of those it is for.
    overrides: subject and arm of those who are not drawn. guardrails: what stops an arm.
    """

    name: str
    arms: tuple[Arm, ...]
    salt: str = ""
    shadows: tuple[Shadow, ...] = ()
    tenants: tuple[str, ...] = ("*",)
    overrides: tuple[tuple[str, str], ...] = ()
    guardrails: tuple[Rule, ...] = ()
    _split: Split = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_name(self.name, "an experiment")
        object.__setattr__(self, "salt", self.salt or self.name)
        object.__setattr__(self, "tenants", tuple(sorted(set(self.tenants))))
        object.__setattr__(self, "overrides", tuple(sorted(self.overrides)))
        self._check_sizes()
        self._check_names()
        self._check_rules()
        split = Split(self.salt, self._shares, 1, self.overrides)
        exact = dict(split.arms)
        arms = tuple(replace(arm, share=exact[arm.name]) for arm in self.arms)
        object.__setattr__(self, "arms", arms)
        object.__setattr__(self, "_split", split)

    @property
    def control(self) -> Arm:
        return self.arms[0]

    @property
    def pinned(self) -> tuple[Arm | Shadow, ...]:
        """Every arm and shadow."""
        return (*self.arms, *self.shadows)

    @property
    def tasks(self) -> frozenset[str]:
        """Every task that some arm or shadow names."""
        return frozenset(task for arm in self.pinned for task in arm.mix.tasks)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON."""
        return digest_of(self.canonical_json())

    def arm(self, name: str) -> Arm:
        """The arm of a name, or NotFoundError."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        known = ", ".join(arm.name for arm in self.arms)
        raise NotFoundError(f"experiment {self.name!r} has no arm {name!r:.80}; it has {known}")

    def is_for(self, tenant: str) -> bool:
        return matches(tenant, self.tenants)

    def split(self, ramp: float) -> Split:
        """Who gets which arm, for a ramp in percent."""
        return replace(self._split, ramp=Decimal(str(ramp)) / 100)

    def following(self, before: "Design") -> "Design":
        """As the next version of a design, whose salt it keeps: subjects keep their arms where the
        shares allow."""
        if self.salt not in (self.name, before.salt):
            raise FailedPreconditionError(
                f"experiment {self.name!r} has the salt {before.salt!r}, which its versions share; "
                "leave the salt out, or create an experiment of another name to draw afresh"
            )
        return replace(self, salt=before.salt)

    def canonical_json(self) -> str:
        """The one text of this design."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)

    def to_json(self) -> dict[str, Any]:
        """The form that `from_json` reads back to an equal design."""
        return {
            "name": self.name,
            "salt": self.salt,
            "arms": [{**_pinned(arm), "share": str(arm.share)} for arm in self.arms],
            "shadows": [{**_pinned(shadow), "rate": shadow.rate} for shadow in self.shadows],
            "tenants": list(self.tenants),
            "overrides": [list(override) for override in self.overrides],
            "guardrails": [asdict(rule) for rule in self.guardrails],
        }

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> "Design":
        return cls(
            name=form["name"],
            salt=form["salt"],
            arms=tuple(Arm(*_unpinned(arm), arm["share"]) for arm in form["arms"]),
            shadows=tuple(Shadow(*_unpinned(arm), arm["rate"]) for arm in form["shadows"]),
            tenants=tuple(form["tenants"]),
            overrides=tuple((subject, arm) for subject, arm in form["overrides"]),
            guardrails=tuple(Rule(**rule) for rule in form["guardrails"]),
        )

    @property
    def _shares(self) -> tuple[tuple[str, Number], ...]:
        return tuple((arm.name, arm.share) for arm in self.arms)

    def _check_sizes(self) -> None:
        limits: tuple[tuple[str, Sequence[object], int], ...] = (
            ("arms", self.arms, MAX_ARMS),
            ("shadow arms", self.shadows, MAX_SHADOWS),
            ("guardrails", self.guardrails, MAX_GUARDRAILS),
            ("overrides", self.overrides, MAX_OVERRIDES),
        )
        for what, listed, most in limits:
            if len(listed) > most:
                raise InvalidRequestError(
                    f"an experiment takes at most {most} {what}, got {len(listed)}"
                )

    def _check_names(self) -> None:
        names = [arm.name for arm in self.pinned]
        if len(set(names)) != len(names):
            raise InvalidRequestError(
                f"two arms of experiment {self.name!r} share a name: {', '.join(names)}; give each "
                "one of its own"
            )
        for subject, _ in self.overrides:
            check_subject(subject)
        for glob in self.tenants:
            if _GLOB.fullmatch(glob) is None:
                raise InvalidRequestError(
                    f"{glob!r:.80} is not a glob of tenants' names, such as 'team-*'"
                )

    def _check_rules(self) -> None:
        for rule in self.guardrails:
            Metric.parse(rule.metric)
            if rule.quantile is not None and rule.metric not in QUANTILES:
                raise InvalidRequestError(
                    f"guardrail '{rule}' is about a quantile, which only {', '.join(QUANTILES)} "
                    "have; leave it out to mean the average"
                )


def check_name(name: str, what: str) -> None:
    """Raise InvalidRequestError unless `name` may name an experiment, an arm or a metric."""
    if _NAME.fullmatch(name) is None:
        raise InvalidRequestError(
            f"{name!r:.80} cannot name {what}; use at most 64 lower-case letters, digits, '.', "
            "'_' and '-', starting with a letter or digit"
        )


def check_subject(subject: str) -> None:
    """Raise InvalidRequestError unless `subject` can be kept."""
    if not 0 < len(subject) <= MAX_SUBJECT_CHARACTERS:
        raise InvalidRequestError(
            f"a subject has between 1 and {MAX_SUBJECT_CHARACTERS} characters, got "
            f"{len(subject)}; an id serves better than what it stands for"
        )


def digest_of(text: str) -> str:
    """SHA-256 (hex) of a design's canonical JSON."""
    return hashlib.sha256(text.encode()).hexdigest()


def _pinned(arm: Arm | Shadow) -> dict[str, Any]:
    return {"name": arm.name, "mix": arm.mix.to_json(), "mix_digest": arm.mix_digest}


def _unpinned(form: Mapping[str, Any]) -> tuple[str, Mix, str]:
    return form["name"], Mix.from_json(form["mix"]), form["mix_digest"]
