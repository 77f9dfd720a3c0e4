"""Methods as requests write them: reading, canonical form, refusals."""

import json

import pytest

from taskmix_composer.errors import InvalidMixError
from taskmix_composer.mix import Mix
from taskmix_composer.recipe import SCALAR_METHODS, Recipe, mix_from_json, parse_mix


def form(method: str, tasks: list[str], **params: object) -> dict[str, object]:
    return {"method": method, "tasks": tasks, "params": params}


def test_text_is_a_mix_or_a_recipe() -> None:
    assert parse_mix("math:0.5 + code") == Mix.of({"math": 0.5, "code": 1.0})
    assert parse_mix('{"terms": [{"task": "math"}]}') == Mix.of({"math": 1.0})
    text = ' {"method": "metagpt", "tasks": ["math", "code"], "params": {}}'
    assert parse_mix(text) == Recipe("metagpt", ("code", "math"))
    assert mix_from_json({"terms": []}) == Mix()
    assert mix_from_json({"method": "average", "tasks": ["a"]}) == Recipe("average", ("a",))


def test_equal_recipes_have_one_form() -> None:
    given = mix_from_json(form("task-arithmetic", ["b", "a"], **{"lambda": 0.3}))
    assert given == mix_from_json(form("task-arithmetic", ["a", "b"]))
    assert given == Recipe("task-arithmetic", ("a", "b"), (("lambda", 0.3),))
    assert hash(given) == hash(Recipe(given.method, given.tasks, given.params))
    lines = Recipe("lines", ("a",), (("beta", -0.0), ("alpha", 1)))
    assert lines.params == (("alpha", 1.0), ("beta", 0.0))


def test_order_is_kept_where_it_matters() -> None:
    slerp = mix_from_json(form("slerp", ["b", "a"], weights=[1, 2.5]))
    assert slerp == Recipe("slerp", ("b", "a"), (("weights", (1.0, 2.5)),))
    assert dict(slerp.params) == {"per_tensor": False, "t": None, "weights": (1.0, 2.5)}
    assert Recipe("analogy", ("c", "a", "b")).tasks == ("c", "a", "b")


@pytest.mark.parametrize("method", ["ties", "dare", "consensus-ta", "magic"])
def test_other_methods_run_in_bank_merge(method: str) -> None:
    with pytest.raises(InvalidMixError, match=f"'{method}'.*average.*taskmix bank merge"):
        mix_from_json(form(method, ["a", "b"]))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"method": "average"}, "lacks its field 'tasks'"),
        ({"method": "average", "tasks": ["a"], "parameters": {}}, "no field 'parameters'"),
        ({"method": 1, "tasks": ["a"]}, "method must be a string"),
        ({"method": "average", "tasks": "a"}, "tasks must be a JSON list"),
        ({"method": "average", "tasks": [1]}, "a task must be a string"),
        ({"method": "average", "tasks": ["a"], "params": []}, "params must be a JSON object"),
        (form("average", []), "1 to 64 tasks, got 0"),
        (form("average", [f"t{number}" for number in range(65)]), "1 to 64 tasks, got 65"),
        (form("average", ["a", "b", "a"]), "twice"),
        (form("average", ["A"]), "not a task name"),
        (form("average", ["base"]), "reserved"),
        (form("analogy", ["a", "b"]), "about 3 tasks, got 2"),
        (form("metagpt", ["a"], scale=1), "no parameter 'scale'; it knows none"),
        (form("lines", ["a"], gamma=1), "no parameter 'gamma'; it knows alpha, beta"),
        (form("lines", ["a"], alpha="1"), "alpha of lines must be a number"),
        (form("lines", ["a"], alpha=True), "alpha of lines must be a number"),
        (form("task-arithmetic", ["a"], **{"lambda": 1e39}), "finite and within float32"),
        (form("norm-scaled", ["a"], per_tensor=1), "true or false, got 1"),
        (form("slerp", ["a", "b"], t=1.5), "t of slerp must be from 0 to 1"),
        (form("slerp", ["a", "b"], t=float("nan")), "finite"),
        (form("slerp", ["a", "b"], weights=2), "weights of slerp must be a JSON list"),
        (form("slerp", ["a", "b"], weights=[1, 0]), "above 0"),
    ],
    ids=str,
)
def test_refusals_say_what_is_wrong(written: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidMixError, match=message):
        mix_from_json(written)


def test_a_key_may_not_be_named_twice() -> None:
    with pytest.raises(InvalidMixError, match="same key twice"):
        parse_mix('{"method": "average", "tasks": ["a"], "tasks": ["b"]}')


def test_a_plain_mix_says_where_methods_are_accepted() -> None:
    with pytest.raises(InvalidMixError, match="taskmix export"):
        Mix.parse(json.dumps(form("average", ["a"])))


@pytest.mark.parametrize("name", SCALAR_METHODS)
def test_null_is_the_default(name: str) -> None:
    method = SCALAR_METHODS[name]
    tasks = ["a", "b", "c"]
    nothing = {parameter.name: None for parameter in method.parameters}
    assert mix_from_json(form(name, tasks, **nothing)) == mix_from_json(form(name, tasks))
