"""docs/openapi.json is what the HTTP edge takes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskmix_server.rest.openapi import SERVERS_OWN, document
from taskmix_server.tenancy.rules import RULES

WRITTEN = Path(__file__).parents[3] / "docs" / "openapi.json"


@pytest.fixture(scope="module")
def written() -> Any:
    return json.loads(WRITTEN.read_text(encoding="utf-8"))


def test_it_is_written_down(written: Any) -> None:
    assert written == document(), "run `make openapi`"


def test_it_has_every_route_of_the_rules(written: Any) -> None:
    routes = {
        f"{method.upper()} {path}" for path, item in written["paths"].items() for method in item
    }
    assert routes == {call for call in RULES if call.startswith(("GET ", "POST "))}


def test_its_references_lead_somewhere(written: Any) -> None:
    names = {reference.removeprefix("#/components/schemas/") for reference in references(written)}
    assert names <= written["components"]["schemas"].keys()
    assert {"Error", "Mix", "Term", "CompletionRequest", "ChatCompletionRequest"} <= names


def test_what_the_server_replaces_is_not_offered(written: Any) -> None:
    for name in ("CompletionRequest", "ChatCompletionRequest"):
        fields = written["components"]["schemas"][name]["properties"]
        assert "task_mix" in fields
        assert not fields.keys() & set(SERVERS_OWN)


def references(value: Any) -> Iterator[str]:
    """Every `$ref` in a document."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    for child in value if isinstance(value, list) else ():
        yield from references(child)
