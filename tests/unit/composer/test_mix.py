import json
import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskmix_composer.errors import InvalidMixError, UnknownTaskError
from taskmix_composer.mix import BASE_MIX, Mix, Term, check_name, layer_of
from taskmix_composer.mix.term import MAX_NUMBER

TENSORS = (
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.mlp.up_proj.weight",
    "model.layers.12.mlp.up_proj.weight",
)
# Multiples of 1/64 below 64 add and multiply exactly.
exact = st.integers(-4096, 4096).map(lambda number: number / 64)
names = st.sampled_from(["a", "b", "math", "x-1.y_2"])
masks = st.lists(st.sampled_from(["tall.a", "!tall.b", "m"]), max_size=2).map(tuple)
by_layer = st.dictionaries(st.integers(0, 12), exact, max_size=3).map(lambda d: tuple(d.items()))
by_tensor = st.dictionaries(st.sampled_from(TENSORS), exact, max_size=3).map(
    lambda d: tuple(d.items())
)
terms = st.builds(Term, names, exact, masks, by_layer, by_tensor)
mixes = st.lists(terms, max_size=6).map(lambda drawn: Mix(tuple(drawn)))
PLANES = {name: f"digest of {name}" for name in ["m", "p", "q", "tall.a", "tall.b"]}
DIGESTS = {name: f"digest of {name}" for name in ["a", "b", "math", "x-1.y_2"]}


def effect(mix: Mix, tensor: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """The coefficient of every (task, masks), zeros left out."""
    coefficients = {(term.task, term.masks): term.coefficient_for(tensor) for term in mix.terms}
    return {key: value for key, value in coefficients.items() if value}


@given(st.lists(terms, max_size=6), st.randoms(use_true_random=False))
def test_order_does_not_matter(drawn: list[Term], random: Random) -> None:
    shuffled = list(drawn)
    random.shuffle(shuffled)
    assert Mix(tuple(shuffled)) == Mix(tuple(drawn))


@given(st.lists(st.floats(-1e37, 1e37), min_size=2, max_size=8))
def test_sums_do_not_depend_on_order(values: list[float]) -> None:
    forward = Mix(tuple(Term("a", value) for value in values))
    backward = Mix(tuple(Term("a", value) for value in reversed(values)))
    assert forward == backward


@given(st.lists(terms, max_size=5), terms, exact)
def test_splitting_a_term_into_addends_changes_nothing(
    others: list[Term], term: Term, part: float
) -> None:
    first = Term(term.task, part, term.masks)
    layers = tuple((layer, value - part) for layer, value in term.by_layer)
    tensors = tuple((tensor, value - part) for tensor, value in term.by_tensor)
    second = Term(term.task, term.coefficient - part, term.masks, layers, tensors)
    assert Mix((*others, first, second)) == Mix((*others, term))


@given(mixes, mixes)
def test_mixes_are_equal_exactly_if_their_effects_are(one: Mix, other: Mix) -> None:
    probes = (*TENSORS, *(f"layers.{layer}.probe" for layer in range(14)), "probe")
    is_same = all(effect(one, tensor) == effect(other, tensor) for tensor in probes)
    assert (one == other) == is_same
    assert (one.canonical_json() == other.canonical_json()) == is_same
    assert (one.digest(DIGESTS, PLANES) == other.digest(DIGESTS, PLANES)) == is_same


@given(mixes)
def test_json_and_text_read_back_to_the_same_mix(mix: Mix) -> None:
    assert Mix.from_json(mix.to_json()) == mix
    assert Mix.parse(mix.canonical_json()) == mix
    assert Mix.parse(str(mix)) == mix


@given(st.dictionaries(names, st.floats(-MAX_NUMBER, MAX_NUMBER)))
def test_expression_round_trip(coefficients: dict[str, float]) -> None:
    text = "+".join(f"{task}:{value!r}" for task, value in coefficients.items()) or "base"
    mix = Mix.parse(text)
    assert mix == Mix.of(coefficients)
    assert Mix.parse(str(mix)) == mix
    assert "layers" not in mix.canonical_json()


@given(exact, exact, exact, exact)
def test_default_folds_into_the_coefficient(
    coefficient: float, default: float, layer: float, tensor: float
) -> None:
    scales = {"default": default, "by_layer": {"1": layer}, "by_tensor": {TENSORS[2]: tensor}}
    mix = Mix.from_json({"terms": [{"task": "a", "coefficient": coefficient, "layers": scales}]})
    expected = [coefficient * scale for scale in (default, default, tensor, default)]
    assert [effect(mix, name).get(("a", ()), 0.0) for name in TENSORS] == expected
    assert effect(mix, "layers.1.other").get(("a", ()), 0.0) == coefficient * layer


@given(mixes)
def test_digest_depends_on_the_entries_it_names_and_no_others(mix: Mix) -> None:
    digest = mix.digest(DIGESTS, PLANES)
    assert mix.digest({**DIGESTS, "unnamed": "anything"}, PLANES) == digest
    for task in mix.tasks:
        assert mix.digest({**DIGESTS, task: "other content"}, PLANES) != digest


def test_canonical_json_is_golden() -> None:
    mix = Mix.parse("b:-0.5 + a")
    assert mix.canonical_json() == (
        '{"terms":[{"coefficient":1.0,"task":"a"},{"coefficient":-0.5,"task":"b"}]}'
    )
    scaled = Mix((Term("a", 0.5, ("!m",), ((3, 0.25),), (("t", 0.0),)),))
    assert scaled.canonical_json() == (
        '{"terms":[{"coefficient":1.0,"layers":{"by_layer":{"3":0.25},"by_tensor":{"t":0.0},'
        '"default":0.5},"masks":["!m"],"task":"a"}]}'
    )


def test_overrides_that_change_nothing_are_dropped() -> None:
    layer_and_tensor = Term(
        "a", 0.5, (), ((0, 0.5), (1, 2.0)), ((TENSORS[1], 0.5), (TENSORS[2], 2.0))
    )
    assert layer_and_tensor == Term("a", 0.5, (), ((1, 2.0),))


def test_a_layer_may_switch_a_term_off_or_on() -> None:
    off = Mix((Term("a", 1.0, (), ((0, 0.0),)),))
    on = Mix((Term("a", 0.0, (), ((0, 1.0),)),))
    assert [off.terms[0].coefficient_for(name) for name in TENSORS[:2]] == [1.0, 0.0]
    assert [on.terms[0].coefficient_for(name) for name in TENSORS[:2]] == [0.0, 1.0]


def test_the_empty_mix() -> None:
    for same in (Mix(), Mix.of({}), Mix.parse("base"), Mix.parse("a:0"), Mix.parse("a+a:-1")):
        assert same == BASE_MIX
        assert same.is_base
        assert same.tasks == ()
    assert not Mix.parse("a").is_base
    assert str(BASE_MIX) == "base"
    assert Mix.from_json({"terms": []}) == BASE_MIX


def test_negative_zero_is_zero() -> None:
    term = Term("a", -0.0, (), ((0, 1.0), (1, -0.0)))
    assert math.copysign(1.0, term.coefficient) == 1.0
    assert term.by_layer == ((0, 1.0),)


def test_masks_are_a_set_and_keep_terms_apart() -> None:
    mix = Mix((Term("a", 1.0, ("m", "!k", "m")), Term("a", 1.0, ("!k", "m")), Term("a")))
    assert [(term.masks, term.coefficient) for term in mix.terms] == [((), 1.0), (("!k", "m"), 2.0)]
    assert mix.tasks == ("a",)


def test_an_unknown_task_has_no_digest() -> None:
    with pytest.raises(UnknownTaskError, match="'b'"):
        Mix.parse("a+b").digest({"a": "0"})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Term("a", math.nan),
        lambda: Term("a", math.inf),
        lambda: Term("a", 10**400),
        lambda: Term("a", True),
        lambda: Term("a", "1"),
        lambda: Term("a", 1.0, (), ((0, math.inf),)),
        lambda: Term("a", 1.0, (), (), (("t", math.nan),)),
        lambda: Term("a", 1.0, (), ((0, 1.5), (0, 2.0))),
        lambda: Term("a", 1.0, ("!",)),
        lambda: Term("a", 1.0, (), tuple((layer, 2.0) for layer in range(4097))),
        lambda: Term("base"),
        lambda: Mix((Term("a", 1.7e308), Term("a", 1.7e308))),
        lambda: Mix(tuple(Term(f"t{number}") for number in range(65))),
    ],
)
def test_values_out_of_bounds_are_refused(make: object) -> None:
    with pytest.raises(InvalidMixError):
        make()


@pytest.mark.parametrize("name", ["a", "0", "x" * 64, "a.b_c-d"])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "A", "-a", ".a", "a b", "a+b", "x" * 65, "base", "experiment", "é", "a\n"]
)
def test_bad_names(name: str) -> None:
    with pytest.raises(InvalidMixError):
        check_name(name)


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        ("model.layers.3.mlp.weight", 3),
        ("layers.0.x", 0),
        ("transformer.h.11.attn.weight", 11),
        ("blocks.2", 2),
        ("a.layers.1.layers.2.x", 1),
        ("model.embed_tokens.weight", None),
        ("my_layers.3.x", None),
        ("layers.x.3", None),
    ],
)
def test_layer_of(tensor: str, layer: int | None) -> None:
    assert layer_of(tensor) == layer


def test_canonical_json_is_plain_json() -> None:
    assert json.loads(Mix.of({"a": 1e-320}).canonical_json())["terms"][0]["coefficient"] == 1e-320


@pytest.mark.parametrize("number", [1e39, -1e300, 10**400])
def test_coefficients_beyond_float32_are_refused(number: float) -> None:
    with pytest.raises(InvalidMixError, match="within float32"):
        Mix.of({"math": number})
    with pytest.raises(InvalidMixError, match="within float32"):
        Mix((Term("math", MAX_NUMBER), Term("math", MAX_NUMBER)))


def test_the_digest_depends_on_the_planes_it_names() -> None:
    mix = Mix((Term("a", 1.0, ("p", "!q")),))
    assert mix.planes == ("p", "q")
    assert mix.digest(DIGESTS, PLANES) == mix.digest(DIGESTS, {**PLANES, "r": "unnamed"})
    assert mix.digest(DIGESTS, PLANES) != mix.digest(DIGESTS, {**PLANES, "q": "other content"})
    assert mix.digest(DIGESTS, PLANES) != Mix((Term("a", 1.0, ("p", "q")),)).digest(DIGESTS, PLANES)
    with pytest.raises(InvalidMixError, match="no plane 'q'"):
        mix.digest(DIGESTS, {"p": "0"})
