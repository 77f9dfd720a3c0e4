"""A merge method as a value: what to call, what it takes, where it comes from."""

import keyword
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import Tensor

from taskmix_composer.errors import InvalidMethodError
from taskmix_composer.merge.parameters import Parameter, Value, spell
from taskmix_composer.merge.selection import Computed, Selection
from taskmix_composer.merge.vectors import Vectors

Run = Callable[..., Iterator[Selection]] | Callable[..., Iterator[Computed]]


@dataclass(frozen=True, slots=True)
class MergeMethod:
    """A rule that makes one vector of many.

    `run` takes vectors and the parameters as keywords, under their names with an underscore behind
    those that Python keeps for itself. `planes_if` holds the values under which the result is a
    plain sum of masked task vectors, and so can be published as planes; None is never.
    """

    name: str
    source: str
    run: Run
    parameters: tuple[Parameter, ...] = ()
    planes_if: Mapping[str, Value] | None = field(default_factory=lambda: MappingProxyType({}))

    def parse(self, pairs: Iterable[str]) -> dict[str, Value]:
        """Read `name=value` texts; parameters that are left out have their defaults."""
        known = {parameter.name: parameter for parameter in self.parameters}
        stated: dict[str, Value] = {}
        for pair in pairs:
            name, equals, text = (piece.strip() for piece in pair.partition("="))
            if not equals or name not in known:
                raise InvalidMethodError(f"cannot use parameter {pair!r}: {self._known()}")
            if name in stated:
                raise InvalidMethodError(f"parameter {name} is given twice; give it once")
            stated[name] = known[name].parse(text)
        return {name: stated.get(name, known[name].default) for name in known}

    def merge(self, vectors: Vectors, params: Mapping[str, Value]) -> Iterator[tuple[str, Tensor]]:
        """Tensor by tensor, the merged delta in float32."""
        # map keeps no tensor back while the next ones are read.
        return map(_named_delta, self.parts(vectors, params))

    def parts(
        self, vectors: Vectors, params: Mapping[str, Value]
    ) -> Iterator[Selection] | Iterator[Computed]:
        """Tensor by tensor, how the merged delta comes about."""
        keywords = {f"{n}_" if keyword.iskeyword(n) else n: params[n] for n in params}
        return self.run(vectors, **keywords)

    def has_planes(self, params: Mapping[str, Value]) -> bool:
        """Whether, with these parameters, planes and coefficients say all of the result."""
        return self.planes_if is not None and self.planes_if.items() <= params.items()

    def planes(self, vectors: Vectors, params: Mapping[str, Value]) -> Iterator[Selection]:
        """Tensor by tensor, the masks and coefficients whose sum `merge` gives."""
        if not self.has_planes(params):
            needed = " ".join(f"{n}={spell(v)}" for n, v in (self.planes_if or {}).items())
            remedy = f"publish a derived entry{f', or give {needed}' if needed else ''}"
            raise InvalidMethodError(f"{self.name} is no sum of masked task vectors; {remedy}")
        return map(_selection, self.parts(vectors, params))

    def _known(self) -> str:
        """What the method takes, for messages."""
        if not self.parameters:
            return f"{self.name} takes none"
        listed = ", ".join(f"{p.name}={spell(p.default)}" for p in self.parameters)
        return f"write name=value; {self.name} knows {listed}"


def _selection(part: Selection | Computed) -> Selection:
    assert isinstance(part, Selection), "a method with planes selects"
    return part


def _named_delta(part: Selection | Computed) -> tuple[str, Tensor]:
    return part.tensor, part.merged()
