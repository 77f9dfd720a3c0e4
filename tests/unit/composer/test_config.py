import pytest

from taskmix_composer.config import Scheme
from taskmix_composer.errors import InvalidSchemeError


@pytest.mark.parametrize(
    ("text", "group", "expected"),
    [
        ("int4", None, Scheme("int4", 64)),
        ("int4", 32, Scheme("int4", 32)),
        (" int8(group = 0) ", None, Scheme("int8", 0)),
        ("int2(group=16)", 16, Scheme("int2", 16)),
        ("int3()", None, Scheme("int3", 64)),
        ("dense", None, Scheme("dense")),
    ],
)
def test_parse(text: str, group: int | None, expected: Scheme) -> None:
    scheme = Scheme.parse(text, group=group)
    assert scheme == expected
    assert Scheme.parse(str(scheme)) == scheme


@pytest.mark.parametrize(
    ("text", "group", "message"),
    [
        ("rtvq(base=3,offset=2)", None, "'rtvq' is not available; choose from dense"),
        ("exact,int4", None, "cannot read scheme"),
        ("@plan.json", None, "cannot read scheme"),
        ("", None, "cannot read scheme"),
        ("dense", 64, "dense takes no group"),
        ("dense16(group=0)", None, "dense16 takes no group"),
        ("int4(group=32)", 64, "contradict"),
        ("int4(bits=3)", None, "no option 'bits'"),
        ("int4(group=-1)", None, "whole number"),
        ("int4", -1, "0 \\(per tensor\\) or more"),
    ],
)
def test_parse_refuses(text: str, group: int | None, message: str) -> None:
    with pytest.raises(InvalidSchemeError, match=message):
        Scheme.parse(text, group=group)


def test_bits_and_equality() -> None:
    assert [Scheme(name).bits for name in ("int8", "int4", "int3", "int2")] == [8, 4, 3, 2]
    assert Scheme("dense", 32) == Scheme("dense", 64)
    assert not Scheme("dense").is_integer
