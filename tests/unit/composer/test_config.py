import pytest

from taskmix_composer.config import Scheme
from taskmix_composer.errors import InvalidSchemeError


@pytest.mark.parametrize(
    ("text", "group", "expected"),
    [
        ("int4", None, Scheme.of("int4", group=64)),
        ("int4", 32, Scheme.of("int4", group=32)),
        (" int8(group = 0) ", None, Scheme.of("int8", group=0)),
        ("int2(group=16)", 16, Scheme.of("int2", group=16)),
        ("int3()", None, Scheme("int3")),
        ("dense", None, Scheme("dense")),
        ("rtvq(base=3,offset=2)", None, Scheme("rtvq")),
        ("rtvq(offset=4)", 16, Scheme.of("rtvq", base=3, offset=4, group=16)),
        ("tall(mtl=2,lambda=0.5)", None, Scheme.of("tall", mtl=2, **{"lambda": 0.5})),
        ("emr", None, Scheme.of("emr", mtl=4)),
        ("sparse(density=.05)", None, Scheme.of("sparse", density=0.05)),
        ("lowrank(rank=8)", None, Scheme.of("lowrank", rank=8)),
        ("sign(salient=0.1)", None, Scheme.of("sign", salient=0.1)),
    ],
)
def test_parse(text: str, group: int | None, expected: Scheme) -> None:
    scheme = Scheme.parse(text, group=group)
    assert scheme == expected
    assert Scheme.parse(str(scheme)) == scheme


@pytest.mark.parametrize(
    ("text", "group", "message"),
    [
        ("int5", None, "'int5' is not available; choose from exact"),
        ("exact,int4", None, "cannot read scheme"),
        ("@plan.json", None, "cannot read scheme"),
        ("", None, "cannot read scheme"),
        ("dense", 64, "dense takes no group"),
        ("dense16(group=0)", None, "no option 'group'; it knows none"),
        ("int4(group=32)", 64, "contradict"),
        ("int4(bits=3)", None, "no option 'bits'; it knows group"),
        ("int4(group=-1)", None, "group must be a whole number"),
        ("int4", -1, r"group must be in \[0"),
        ("tall(mtl=5)", None, "mtl is one of 8, 4, 3, 2, got 5"),
        ("tall(lambda=high)", None, "lambda must be a number"),
        ("sparse(density=1.5)", None, r"density must be in \[1e-06, 1\], got 1.5"),
        ("sparse(density=0)", None, "density must be in"),
        ("lowrank(rank=0)", None, r"rank must be in \[1, inf\]"),
        ("lowrank(rank=1.5)", None, "rank must be a whole number"),
    ],
)
def test_parse_refuses(text: str, group: int | None, message: str) -> None:
    with pytest.raises(InvalidSchemeError, match=message):
        Scheme.parse(text, group=group)


def test_options_are_checked_when_the_value_is_made() -> None:
    with pytest.raises(InvalidSchemeError, match="no option 'bits'"):
        Scheme.of("int4", bits=3)
    with pytest.raises(InvalidSchemeError, match="mtl is one of"):
        Scheme.of("emr", mtl=1)


def test_bits_options_and_kinds() -> None:
    assert [Scheme(name).bits for name in ("int8", "int4", "int3", "int2")] == [8, 4, 3, 2]
    assert Scheme("tall")["lambda"] == 0.4
    assert str(Scheme("tall")) == "tall(mtl=4,group=64,lambda=0.4)"
    assert [name for name in ("int4", "rtvq", "tall", "emr") if Scheme(name).is_set_bound] == [
        "rtvq",
        "tall",
        "emr",
    ]
