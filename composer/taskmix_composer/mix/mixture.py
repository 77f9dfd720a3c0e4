"""The mix itself: a canonical set of terms with a digest."""

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass

from taskmix_composer.errors import InvalidMixError, UnknownTaskError
from taskmix_composer.mix.expression import parse_expression
from taskmix_composer.mix.form import load_json, read_terms, write_term
from taskmix_composer.mix.term import Term, add_terms

MAX_TERMS = 64


@dataclass(frozen=True, slots=True)
class Mix:
    """A sum of task vectors; equal mixes give equal weights, equal JSON and equal digests.

    Terms of one task and one set of masks are added up, terms that are zero everywhere are
    dropped, and the rest is sorted.
    """

    terms: tuple[Term, ...] = ()

    def __post_init__(self) -> None:
        if len(self.terms) > MAX_TERMS:
            raise InvalidMixError(f"a mix has at most {MAX_TERMS} terms, got {len(self.terms)}")
        ordered = sorted(self.terms, key=_key)
        sums = (add_terms(same) for _, same in itertools.groupby(ordered, key=_key))
        object.__setattr__(self, "terms", tuple(term for term in sums if not term.is_zero))

    @classmethod
    def of(cls, coefficients: Mapping[str, float]) -> "Mix":
        """The mix of whole task vectors with these coefficients."""
        return cls(tuple(Term(task, value) for task, value in coefficients.items()))

    @classmethod
    def parse(cls, text: str) -> "Mix":
        """Read an expression such as `math:0.6+code:-0.3`, or JSON if the text starts with `{`."""
        if text.lstrip().startswith("{"):
            return cls.from_json(load_json(text))
        return cls(parse_expression(text))

    @classmethod
    def from_json(cls, form: object) -> "Mix":
        """Read decoded JSON, `{"terms": [{"task": ..., "coefficient": ...}, ...]}`."""
        return cls(read_terms(form))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks named, sorted, each once."""
        return tuple(sorted({term.task for term in self.terms}))

    @property
    def planes(self) -> tuple[str, ...]:
        """The planes named in masks, sorted, each once."""
        masks = {mask.removeprefix("!") for term in self.terms for mask in term.masks}
        return tuple(sorted(masks))

    @property
    def is_base(self) -> bool:
        """Whether this mix is the base model itself."""
        return not self.terms

    def to_json(self) -> dict[str, object]:
        """The form `from_json` reads back to an equal mix."""
        return {"terms": [write_term(term) for term in self.terms]}

    def canonical_json(self) -> str:
        """The one text of this mix."""
        return _dump(self.to_json())

    def digest(
        self, entry_digests: Mapping[str, str], plane_digests: Mapping[str, str] | None = None
    ) -> str:
        """SHA-256 (hex) of this mix over the contents of the entries and planes it names.

        Both map names to content digests and may name more than the mix does.
        """
        for task in self.tasks:
            if task not in entry_digests:
                raise UnknownTaskError(f"the bank has no task {task!r}")
        entries = {task: entry_digests[task] for task in self.tasks}
        identity: dict[str, object] = {"mix": self.to_json(), "entries": entries}
        if self.planes:
            known = plane_digests or {}
            for plane in self.planes:
                if plane not in known:
                    raise InvalidMixError(f"the bank has no plane {plane!r}")
            identity["planes"] = {plane: known[plane] for plane in self.planes}
        return hashlib.sha256(_dump(identity).encode()).hexdigest()

    def __str__(self) -> str:
        """The expression of this mix, or its JSON where an expression cannot say it."""
        if any(term.masks or term.by_layer or term.by_tensor for term in self.terms):
            return self.canonical_json()
        return "+".join(f"{term.task}:{term.coefficient!r}" for term in self.terms) or "base"


def _key(term: Term) -> tuple[str, tuple[str, ...]]:
    return term.task, term.masks


def _dump(form: object) -> str:
    return json.dumps(form, sort_keys=True, separators=(",", ":"), allow_nan=False)


BASE_MIX = Mix()
