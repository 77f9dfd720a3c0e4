"""A tenant and its rights."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from fnmatch import fnmatchcase

from taskmix_server.errors import InvalidRequestError

MAX_GLOBS = 256

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_GLOB = re.compile(r"[a-z0-9._*?\[\]!-]{1,64}")


class Role(StrEnum):
    """An admin may do everything; a user what its other fields allow."""

    ADMIN = "admin"
    USER = "user"


class Verb(StrEnum):
    """What a user may be allowed to do beyond generating: changes of state, and reading results."""

    LOAD_TASK = "tasks.load"
    UNLOAD_TASK = "tasks.unload"
    REGISTER_MIX = "mixes.register"
    DELETE_MIX = "mixes.delete"
    CREATE_EXPERIMENT = "experiments.create"
    START_EXPERIMENT = "experiments.start"
    RAMP_EXPERIMENT = "experiments.ramp"
    STOP_EXPERIMENT = "experiments.stop"
    PROMOTE_EXPERIMENT = "experiments.promote"
    ROLL_BACK_EXPERIMENT = "experiments.rollback"
    RECORD_OUTCOMES = "experiments.record"
    READ_RESULTS = "experiments.results"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a tenant may use; None is no limit of its own.

    Rates are per second, `max_prompt_tokens` and `max_output_tokens` per request, `weight` is the
    share under load relative to other tenants'.
    """

    requests_per_s: float | None = None
    tokens_per_s: float | None = None
    max_concurrency: int | None = None
    max_queued: int | None = None
    max_prompt_tokens: int | None = None
    max_output_tokens: int | None = None
    max_resident_bytes: int | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value is not None and not 0 < value < math.inf:
                raise InvalidRequestError(
                    f"{limit.name} must be positive and finite, got {value}; leave it out for no "
                    "limit"
                )

    def output_tokens(self, asked: int | None, default: int | None) -> int | None:
        """The most tokens that an answer may have: as asked, or by default no more than allowed.

        None is as many as the model can. Raises InvalidRequestError for more than is allowed.
        """
        most = self.max_output_tokens
        if most is None:
            return asked if asked is not None else default
        if asked is None:
            return most if default is None else min(default, most)
        if asked > most:
            raise InvalidRequestError(
                f"max_tokens is {asked}, and this tenant's answers may have at most {most} tokens "
                "(max_output_tokens)"
            )
        return asked


@dataclass(frozen=True, slots=True)
class Tenant:
    """A unit of isolation, quota and billing.

    tasks, mixes: globs of the names that a user may use; a named mix needs its tasks allowed too.
    may_inline: whether a user may write a mix in a request; a bare task's name is always allowed.
    may_negative: whether what a user writes may have negative coefficients. id: given once.
    """

    name: str
    role: Role = Role.USER
    tasks: tuple[str, ...] = ()
    mixes: tuple[str, ...] = ()
    verbs: tuple[Verb, ...] = ()
    may_inline: bool = False
    may_negative: bool = False
    limits: Limits = field(default_factory=Limits)
    id: str = ""

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None:
            raise InvalidRequestError(
                f"{self.name!r:.80} is not a tenant's name; use at most 64 lower-case letters, "
                "digits, '.', '_' and '-', starting with a letter or digit"
            )
        for field_name in ("tasks", "mixes"):
            globs = _checked(getattr(self, field_name), field_name)
            object.__setattr__(self, field_name, globs)
        object.__setattr__(self, "verbs", tuple(sorted(set(self.verbs))))

    @property
    def is_admin(self) -> bool:
        return self.role is Role.ADMIN


def matches(name: str, globs: Sequence[str]) -> bool:
    """Whether one of the globs matches the whole name."""
    return any(fnmatchcase(name, glob) for glob in globs)


def _checked(globs: Sequence[str], field_name: str) -> tuple[str, ...]:
    if len(globs) > MAX_GLOBS:
        raise InvalidRequestError(f"{field_name} takes at most {MAX_GLOBS} globs")
    for glob in globs:
        if _GLOB.fullmatch(glob) is None:
            raise InvalidRequestError(
                f"{glob!r:.80} is not a glob of names; use lower-case letters, digits, '.', '_', "
                "'-', and '*', '?' or '[...]' for what varies"
            )
    return tuple(sorted(set(globs)))
