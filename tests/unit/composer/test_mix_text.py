import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskmix_composer.errors import InvalidMixError
from taskmix_composer.mix import Mix


@pytest.mark.parametrize(
    ("text", "coefficients"),
    [
        ("math", {"math": 1.0}),
        ("math:0.6+code:-0.3", {"math": 0.6, "code": -0.3}),
        (" math : 0.6 +\tcode : +.5 ", {"math": 0.6, "code": 0.5}),
        ("a:1e-3+b:-2", {"a": 1e-3, "b": -2.0}),
        ("a:1.E+2", {"a": 100.0}),
        ("a-b", {"a-b": 1.0}),
        ("a+a:2", {"a": 3.0}),
        ("1:1", {"1": 1.0}),
        ("base", {}),
        ("  base\n", {}),
    ],
)
def test_expressions(text: str, coefficients: dict[str, float]) -> None:
    assert Mix.parse(text) == Mix.of(coefficients)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("", 0),
        ("  ", 2),
        ("+a", 0),
        ("a+", 2),
        ("a++b", 2),
        ("a+-b", 2),
        ("a b", 2),
        ("a:", 2),
        ("a:x", 2),
        ("a:nan", 2),
        ("a:inf", 2),
        ("a: 1e999", 3),
        ("a:1+b:-1e999", 6),
        ("a:--1", 2),
        ("a:1_0", 3),
        ("a:0x1", 3),
        ("a:1:2", 3),
        ("Math", 0),
        ("a+base", 2),
        ("base:1", 0),
        ("experiment", 0),
        ("a:\u0661", 2),
        ("-a", 0),
        ("a+" + "b" * 65, 2),
    ],
)
def test_errors_point_at_the_character(text: str, position: int) -> None:
    with pytest.raises(InvalidMixError) as caught:
        Mix.parse(text)
    assert caught.value.position == position
    _, shown, caret = str(caught.value).split("\n")
    assert shown == "  " + text[: position + 60].replace("\t", " ").replace("\n", " ")
    assert caret == "  " + " " * position + "^"


def test_a_long_expression_is_shown_around_the_error() -> None:
    text = "+".join(["task"] * 50) + "+!"
    with pytest.raises(InvalidMixError) as caught:
        Mix.parse(text)
    _, shown, caret = str(caught.value).split("\n")
    assert len(shown) < 130
    assert shown[len(caret) - 1] == "!"
    assert caught.value.position == len(text) - 1


def test_expressions_are_bounded() -> None:
    assert Mix.parse("a" + " " * 4095) == Mix.of({"a": 1.0})
    with pytest.raises(InvalidMixError, match="4096") as caught:
        Mix.parse("a" * 4097)
    assert caught.value.position == 4096


@given(st.text(alphabet='ab:+-.0 1e\t\nB{}"é', max_size=12))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        mix = Mix.parse(text)
    except InvalidMixError:
        return
    assert Mix.parse(str(mix)) == mix


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ([], "must be a JSON object"),
        ({}, "lacks its field 'terms'"),
        ({"terms": {}}, "terms must be a JSON list"),
        ({"terms": [], "x": 1}, "no field 'x'"),
        ({"method": "ties", "tasks": ["a"]}, "only terms can stand here"),
        ({"terms": [3]}, "a term must be a JSON object"),
        ({"terms": [{"coefficient": 1}]}, "lacks its field 'task'"),
        ({"terms": [{"task": 3}]}, "task must be a string"),
        ({"terms": [{"task": "A"}]}, "not a task name"),
        ({"terms": [{"task": "a", "weight": 1}]}, "no field 'weight'"),
        ({"terms": [{"task": "a", "coefficient": "1"}]}, "must be a number"),
        ({"terms": [{"task": "a", "coefficient": True}]}, "must be a number"),
        ({"terms": [{"task": "a", "coefficient": None}]}, "must be a number"),
        ({"terms": [{"task": "a", "coefficient": 10**400}]}, "must be finite"),
        ({"terms": [{"task": "a", "masks": "m"}]}, "masks must be a JSON list"),
        ({"terms": [{"task": "a", "masks": [1]}]}, "a mask must be a string"),
        ({"terms": [{"task": "a", "masks": ["M"]}]}, "not a task name"),
        ({"terms": [{"task": "a", "layers": 2}]}, "layers must be a JSON object"),
        ({"terms": [{"task": "a", "layers": {"0": 2}}]}, "no field '0'"),
        ({"terms": [{"task": "a", "layers": {"by_layer": {"01": 2}}}]}, "layer numbers"),
        ({"terms": [{"task": "a", "layers": {"by_layer": {"-1": 2}}}]}, "layer numbers"),
        ({"terms": [{"task": "a", "layers": {"by_layer": [1]}}]}, "by_layer must be"),
        ({"terms": [{"task": "a", "layers": {"by_tensor": {"t": "x"}}}]}, "must be a number"),
        (
            {"terms": [{"task": "a", "coefficient": 1e200, "layers": {"default": 1e200}}]},
            "must be finite",
        ),
    ],
)
def test_json_is_read_strictly(form: object, message: str) -> None:
    with pytest.raises(InvalidMixError, match=message):
        Mix.from_json(form)
    if isinstance(form, dict):
        with pytest.raises(InvalidMixError):
            Mix.parse(json.dumps(form))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"terms": [{"task": "a", "coefficient": NaN}]}',
        '{"terms": [{"task": "a", "coefficient": -Infinity}]}',
        '{"terms": [], "terms": []}',
        '{"terms": ' + "[" * 100_000,
        '{"terms": [{"task": "a", "coefficient": ' + "9" * 5000 + "}]}",
        "{" + " " * (1 << 20) + "}",
    ],
)
def test_text_that_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidMixError):
        Mix.parse(text)


def test_json_accepts_integers_and_omitted_coefficients() -> None:
    mix = Mix.from_json({"terms": [{"task": "a", "coefficient": 2}, {"task": "b"}]})
    assert mix == Mix.of({"a": 2.0, "b": 1.0})
