"""Named mixes in their database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from taskmix_composer.errors import InvalidMixError
from taskmix_composer.mix import Mix
from taskmix_server.database import Database
from taskmix_server.errors import AlreadyExistsError, NotFoundError
from taskmix_server.runtime.mixes import NamedMixRecord, NamedMixStore
from taskmix_server.tenancy.audit import AuditLog, Author, Change

AUTHOR = Author("ops", "0123456789ab", "a request")
PROD = Mix.parse("math:0.6+code:-0.3")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[NamedMixStore]:
    database = Database.at(tmp_path / "deep" / "state")
    yield NamedMixStore(database)
    database.close()


def test_a_name_keeps_its_mix(store: NamedMixStore, tmp_path: Path) -> None:
    assert store.register("prod", PROD, AUTHOR) == NamedMixRecord("prod", PROD)
    assert store.get("prod").mix == PROD
    again = Database.at(tmp_path / "deep" / "state")
    assert NamedMixStore(again).all() == [NamedMixRecord("prod", PROD)]
    again.close()


def test_registering_twice(store: NamedMixStore) -> None:
    store.register("prod", PROD, AUTHOR)
    assert store.register("prod", Mix.parse("code:-0.3+math:0.6"), AUTHOR).mix == PROD
    with pytest.raises(AlreadyExistsError, match=r"exists as code:-0.3\+math:0.6"):
        store.register("prod", Mix(), AUTHOR)
    assert store.all() == [NamedMixRecord("prod", PROD)]


def test_scales_and_the_base_survive(store: NamedMixStore) -> None:
    scaled = Mix.parse('{"terms": [{"task": "a", "layers": {"by_layer": {"0": 0.1}}}]}')
    store.register("scaled", scaled, AUTHOR)
    store.register("nothing-added", Mix(), AUTHOR)
    assert [record.mix for record in store.all()] == [Mix(), scaled]


def test_deleting(store: NamedMixStore) -> None:
    store.register("prod", PROD, AUTHOR)
    store.delete("prod", AUTHOR)
    with pytest.raises(NotFoundError, match="'prod'"):
        store.get("prod")
    with pytest.raises(NotFoundError, match="'prod'"):
        store.delete("prod", AUTHOR)
    assert store.all() == []


@pytest.mark.parametrize("name", ["", "Prod", "base", "experiment", "a b", "-a", "a" * 300])
def test_names(store: NamedMixStore, name: str) -> None:
    with pytest.raises(InvalidMixError):
        store.register(name, PROD, AUTHOR)


def test_changes_are_written_down(tmp_path: Path) -> None:
    database = Database.at(tmp_path)
    store, log = NamedMixStore(database), AuditLog(database)
    for mix in (PROD, PROD):  # repeating changes nothing
        store.register("prod", mix, AUTHOR)
    store.delete("prod", AUTHOR)
    with pytest.raises(NotFoundError):
        store.delete("prod", AUTHOR)
    state = {"mix": PROD.to_json()}
    assert [(record.author, record.change) for record in log.latest(10)] == [
        (AUTHOR, Change("mixes.delete", "prod", state, None)),
        (AUTHOR, Change("mixes.register", "prod", None, state)),
    ]
    database.close()


def test_what_is_not_seen_is_not_there(store: NamedMixStore) -> None:
    store.register("prod", PROD, AUTHOR)

    def blind(name: str, mix: Mix) -> bool:
        return False

    assert store.find("prod", blind) is None
    assert store.all(blind) == []
    messages = set()
    for name in ("prod", "gone"):
        with pytest.raises(NotFoundError) as caught:
            store.delete(name, AUTHOR, blind)
        messages.add(str(caught.value).replace(name, "NAME"))
    assert len(messages) == 1
    with pytest.raises(AlreadyExistsError) as taken:
        store.register("prod", Mix(), AUTHOR, blind)
    assert "math" not in str(taken.value)
    assert store.get("prod").mix == PROD
