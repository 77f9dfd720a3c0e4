"""Named mixes in their database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from taskmix_composer.errors import InvalidMixError
from taskmix_composer.mix import Mix
from taskmix_server.errors import AlreadyExistsError, NotFoundError
from taskmix_server.runtime.mixes import NamedMixRecord, NamedMixStore

PROD = Mix.parse("math:0.6+code:-0.3")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[NamedMixStore]:
    opened = NamedMixStore.at(tmp_path / "deep" / "state")
    yield opened
    opened.close()


def test_a_name_keeps_its_mix(store: NamedMixStore, tmp_path: Path) -> None:
    assert store.register("prod", PROD) == NamedMixRecord("prod", PROD)
    assert store.get("prod").mix == PROD
    again = NamedMixStore.at(tmp_path / "deep" / "state")
    assert again.all() == [NamedMixRecord("prod", PROD)]
    again.close()


def test_registering_twice(store: NamedMixStore) -> None:
    store.register("prod", PROD)
    assert store.register("prod", Mix.parse("code:-0.3+math:0.6")).mix == PROD
    with pytest.raises(AlreadyExistsError, match=r"exists as code:-0.3\+math:0.6"):
        store.register("prod", Mix())
    assert store.all() == [NamedMixRecord("prod", PROD)]


def test_scales_and_the_base_survive(store: NamedMixStore) -> None:
    scaled = Mix.parse('{"terms": [{"task": "a", "layers": {"by_layer": {"0": 0.1}}}]}')
    store.register("scaled", scaled)
    store.register("nothing-added", Mix())
    assert [record.mix for record in store.all()] == [Mix(), scaled]


def test_deleting(store: NamedMixStore) -> None:
    store.register("prod", PROD)
    store.delete("prod")
    for call in (store.get, store.delete):
        with pytest.raises(NotFoundError, match="'prod'"):
            call("prod")
    assert store.all() == []


@pytest.mark.parametrize("name", ["", "Prod", "base", "experiment", "a b", "-a", "a" * 300])
def test_names(store: NamedMixStore, name: str) -> None:
    with pytest.raises(InvalidMixError):
        store.register(name, PROD)
