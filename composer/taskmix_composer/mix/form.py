"""Mixes as JSON: reading the form users write, and writing the one form we echo."""

import json
import re
from collections.abc import Mapping
from typing import NoReturn

from taskmix_composer.errors import InvalidMixError
from taskmix_composer.mix.term import Term, check_number

MAX_JSON_CHARACTERS = 1 << 20
_LAYER_NUMBER = re.compile("0|[1-9][0-9]{0,8}")


def load_json(text: str) -> object:
    """Decode JSON text, refusing repeated keys and numbers that are not JSON."""
    if len(text) > MAX_JSON_CHARACTERS:
        raise InvalidMixError(f"a mix in JSON has at most {MAX_JSON_CHARACTERS} characters")
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidMixError(f"the mix is not valid JSON: {error}") from None


def read_terms(form: object) -> tuple[Term, ...]:
    """Read `{"terms": [...]}`."""
    if isinstance(form, Mapping) and "method" in form:
        raise InvalidMixError(
            "only terms can stand here; methods are expanded by a server's requests and named "
            "mixes, and by `taskmix export`. Write the terms themselves, "
            'as in {"terms": [{"task": "math", "coefficient": 0.6}]}'
        )
    fields = read_fields(form, "a mix", required={"terms"})
    return tuple(_read_term(item) for item in read_list(fields["terms"], "terms"))


def write_term(term: Term) -> dict[str, object]:
    """The JSON form of a term; scales are written as effective values beside a coefficient of 1."""
    form: dict[str, object] = {"task": term.task, "coefficient": term.coefficient}
    if term.masks:
        form["masks"] = list(term.masks)
    if term.by_layer or term.by_tensor:
        form["coefficient"] = 1.0
        form["layers"] = {
            "default": term.coefficient,
            "by_layer": {str(layer): value for layer, value in term.by_layer},
            "by_tensor": dict(term.by_tensor),
        }
    return form


def _read_term(item: object) -> Term:
    fields = read_fields(
        item, "a term", required={"task"}, optional={"coefficient", "layers", "masks"}
    )
    task = read_text(fields["task"], "task")
    where = f"coefficient of {task}"
    coefficient = check_number(fields.get("coefficient", 1.0), where)
    scales = read_fields(
        fields.get("layers", {}), "layers", optional={"default", "by_layer", "by_tensor"}
    )

    def scaled(scale: object) -> float:
        return check_number(coefficient * check_number(scale, f"a scale of {task}"), where)

    by_layer = read_mapping(scales.get("by_layer", {}), "by_layer")
    by_tensor = read_mapping(scales.get("by_tensor", {}), "by_tensor")
    return Term(
        task,
        scaled(scales.get("default", 1.0)),
        tuple(read_text(mask, "a mask") for mask in read_list(fields.get("masks", []), "masks")),
        tuple((_layer_number(layer), scaled(scale)) for layer, scale in by_layer.items()),
        tuple((tensor, scaled(scale)) for tensor, scale in by_tensor.items()),
    )


def read_fields(
    value: object,
    what: str,
    *,
    required: frozenset[str] | set[str] = frozenset(),
    optional: frozenset[str] | set[str] = frozenset(),
) -> Mapping[str, object]:
    """Check that `value` is an object with these keys and no others."""
    fields = read_mapping(value, what)
    unknown = sorted(fields.keys() - required - optional)
    if unknown:
        known = ", ".join(sorted(required | optional))
        raise InvalidMixError(f"{what} has no field {unknown[0]!r}; it has {known}")
    missing = sorted(required - fields.keys())
    if missing:
        raise InvalidMixError(f"{what} lacks its field {missing[0]!r}")
    return fields


def read_mapping(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidMixError(f"{what} must be a JSON object, got {value!r:.80}")
    return value


def read_list(value: object, what: str) -> list[object]:
    if not isinstance(value, list):
        raise InvalidMixError(f"{what} must be a JSON list, got {value!r:.80}")
    return value


def read_text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise InvalidMixError(f"{what} must be a string, got {value!r:.80}")
    return value


def _layer_number(text: str) -> int:
    if _LAYER_NUMBER.fullmatch(text) is None:
        raise InvalidMixError(f'by_layer keys are layer numbers such as "0", got {text!r:.80}')
    return int(text)


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("an object names the same key twice")
    return fields


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number in JSON")
