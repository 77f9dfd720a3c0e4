"""Sampling options are checked when they are made."""

import math
from typing import Any

import pytest

from taskmix_server.domain.generation import SamplingOptions
from taskmix_server.domain.limits import MAX_COMPLETIONS
from taskmix_server.errors import InvalidRequestError


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 1, "min_tokens": 1},
        {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0},
        {"top_p": 1e-9, "min_p": 1.0, "n": MAX_COMPLETIONS},
        {"stop": ("x",) * 16},
    ],
    ids=str,
)
def test_the_edges_of_the_ranges(options: dict[str, Any]) -> None:
    made = SamplingOptions(**options)
    assert {name: getattr(made, name) for name in options} == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens"),
        ({"temperature": -1e-9}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"min_p": -0.01}, "min_p"),
        ({"min_p": 1.01}, "min_p"),
        ({"top_k": -1}, "top_k"),
        ({"n": 0}, "n must be"),
        ({"n": MAX_COMPLETIONS + 1}, "n must be"),
        ({"stop": ("",)}, "none of them empty"),
        ({"stop": ("x",) * 17}, "at most 16"),
        *(
            ({name: value}, "finite")
            for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty")
            for value in (math.nan, math.inf, -math.inf)
        ),
    ],
    ids=str,
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        SamplingOptions(**options)
