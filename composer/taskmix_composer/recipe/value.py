"""A merge method as a request writes it, before a bank expands it to a mix."""

from collections.abc import Mapping
from dataclasses import dataclass

from taskmix_composer.errors import InvalidMixError
from taskmix_composer.mix import Mix, check_name
from taskmix_composer.mix.form import load_json, read_fields, read_list, read_mapping, read_text
from taskmix_composer.mix.mixture import MAX_TERMS
from taskmix_composer.recipe.methods import SCALAR_METHODS, Method
from taskmix_composer.recipe.parameters import Value


@dataclass(frozen=True, slots=True)
class Recipe:
    """A scalar method, its tasks, and a checked value for each of its parameters.

    Tasks are sorted unless their order matters to the method, parameters are sorted and defaults
    filled in: equal recipes expand to equal mixes. The formula works out what is None.
    """

    method: str
    tasks: tuple[str, ...]
    params: tuple[tuple[str, object], ...] = ()

    def __post_init__(self) -> None:
        if self.method not in SCALAR_METHODS:
            raise InvalidMixError(
                f"{self.method!r:.80} is not a method that a request can name; those are "
                f"{', '.join(SCALAR_METHODS)}. Methods that read weights, such as ties or dare, "
                "run in `taskmix bank merge` and are served by the name it publishes"
            )
        method = SCALAR_METHODS[self.method]
        self._check_tasks(method)
        params = self._read_params(method)
        object.__setattr__(self, "params", tuple(sorted(params.items())))
        if not method.is_ordered:
            object.__setattr__(self, "tasks", tuple(sorted(self.tasks)))

    @classmethod
    def from_json(cls, form: object) -> "Recipe":
        """Read decoded JSON, `{"method": ..., "tasks": [...], "params": {...}}`."""
        fields = read_fields(form, "a mix", required={"method", "tasks"}, optional={"params"})
        tasks = (read_text(task, "a task") for task in read_list(fields["tasks"], "tasks"))
        params = read_mapping(fields.get("params", {}), "params")
        return cls(read_text(fields["method"], "method"), tuple(tasks), tuple(params.items()))

    @property
    def is_measured(self) -> bool:
        """Whether expanding it needs the bank's Gram table."""
        return SCALAR_METHODS[self.method].is_measured

    def _check_tasks(self, method: Method) -> None:
        for task in self.tasks:
            check_name(task)
        if len(set(self.tasks)) != len(self.tasks):
            raise InvalidMixError(f"{self.method} names a task twice; name each once")
        if method.num_tasks not in (None, len(self.tasks)):
            raise InvalidMixError(
                f"{self.method} is about {method.num_tasks} tasks, got {len(self.tasks)}"
            )
        if not 1 <= len(self.tasks) <= MAX_TERMS:
            raise InvalidMixError(
                f"{self.method} takes 1 to {MAX_TERMS} tasks, got {len(self.tasks)}"
            )

    def _read_params(self, method: Method) -> dict[str, Value]:
        given, known = dict(self.params), {each.name: each for each in method.parameters}
        unknown = sorted(given.keys() - known.keys())
        if unknown:
            raise InvalidMixError(
                f"{self.method} has no parameter {unknown[0]!r:.80}; it knows "
                f"{', '.join(known) or 'none'}"
            )
        return {name: each.read(given.get(name), self.method) for name, each in known.items()}


def parse_mix(text: str) -> Mix | Recipe:
    """Read a mix in any of its forms: an expression, or JSON with terms or a method."""
    if text.lstrip().startswith("{"):
        return mix_from_json(load_json(text))
    return Mix.parse(text)


def mix_from_json(form: object) -> Mix | Recipe:
    """Read decoded JSON with terms or a method."""
    if isinstance(form, Mapping) and "method" in form:
        return Recipe.from_json(form)
    return Mix.from_json(form)
