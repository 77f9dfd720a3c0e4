"""Experiments in their database."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from taskmix_composer.errors import InvalidMixError
from taskmix_composer.mix import Mix
from taskmix_server.database import Database, connection
from taskmix_server.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidRequestError,
    NotFoundError,
    ServingError,
)
from taskmix_server.experiments.experiment import Halt, Promotion, Status
from taskmix_server.experiments.store import ExperimentStore
from taskmix_server.runtime.mixes import NamedMixStore
from taskmix_server.tenancy.audit import AuditLog
from tests.unit.server.experiments.designs import AUTHOR, CODE, MATH, Clock, design, draft


def running(store: ExperimentStore, name: str = "tone") -> None:
    store.create(draft(name), AUTHOR)
    store.start(name, AUTHOR)


def verbs(database: Database) -> list[str]:
    return [record.change.verb for record in reversed(AuditLog(database).latest(100))]


def test_a_life(store: ExperimentStore, database: Database, clock: Clock) -> None:
    made_at = clock.now
    created = store.create(draft(ramp=10.0, overrides=(("tester", "mixed"),)), AUTHOR)
    assert (created.status, created.version, created.ramp) == (Status.DRAFT, 1, 10.0)
    clock.advance(hours=1)
    assert store.start("tone", AUTHOR).started_at == clock.now
    assert store.ramp("tone", 50.0, AUTHOR).ramp == 50.0
    clock.advance(hours=1)
    store.stop("tone", "enough", AUTHOR)
    stopped = store.get("tone")
    assert stopped.design == created.design
    assert (stopped.status, stopped.ramp, stopped.why) == (Status.STOPPED, 50.0, "enough")
    assert (stopped.created_at, stopped.stopped_at) == (made_at, clock.now)
    assert store.all() == [stopped]
    assert verbs(database) == [
        *("experiments.create", "experiments.start", "experiments.ramp", "experiments.stop"),
    ]
    last = AuditLog(database).latest(1)[0]
    assert last.author == AUTHOR
    assert last.change.before is not None
    assert last.change.after is not None
    assert (last.change.before["status"], last.change.after["status"]) == ("running", "stopped")
    assert last.change.after["digest"] == created.design.digest


def test_it_is_there_after_a_restart(store: ExperimentStore, tmp_path: Path) -> None:
    store.create(draft(), AUTHOR)
    started = store.start("tone", AUTHOR)
    again = Database.at(tmp_path)
    assert ExperimentStore(again).get("tone") == started
    again.close()


def test_creating_twice(store: ExperimentStore, database: Database) -> None:
    first = store.create(draft(), AUTHOR)
    assert store.create(draft(), AUTHOR) == first
    with pytest.raises(AlreadyExistsError, match="'tone' exists; add `--new-version`"):
        store.create(draft("tone", 0.6, 0.4), AUTHOR)
    assert store.get("tone") == first
    assert verbs(database) == ["experiments.create"]


def test_creating_a_draft_again_with_another_ramp(store: ExperimentStore, clock: Clock) -> None:
    store.create(draft(), AUTHOR)
    with pytest.raises(AlreadyExistsError, match=r"ramp of 100 %, not 10 %; .* ramp tone 10`"):
        store.create(draft(ramp=10.0), AUTHOR)
    ramped = store.ramp("tone", 10.0, AUTHOR)
    assert store.create(draft(ramp=10.0), AUTHOR) == ramped
    started = store.start("tone", AUTHOR)
    assert store.create(draft(ramp=50.0), AUTHOR) == started  # sent again, while it runs


def test_what_is_hidden_is_not_said_to_be_the_same(store: ExperimentStore) -> None:
    def hide(experiment: object) -> None:
        raise NotFoundError("hidden")

    store.create(draft(), AUTHOR)
    for wanted in (draft(), draft(ramp=10.0), draft("tone", 0.6, 0.4)):
        with pytest.raises(AlreadyExistsError, match="'tone' exists"):
            store.create(wanted, AUTHOR, check=hide)


def test_a_draft_is_replaced(store: ExperimentStore) -> None:
    first = store.create(draft(), AUTHOR)
    second = store.create(draft("tone", 0.6, 0.4, ramp=5.0), AUTHOR, is_new_version=True)
    assert (second.version, second.id, second.ramp) == (1, first.id, 5.0)
    assert store.get("tone").design == design("tone", 0.6, 0.4)


def test_a_new_version_takes_over(store: ExperimentStore, clock: Clock) -> None:
    store.create(draft(salt="pepper"), AUTHOR)
    store.start("tone", AUTHOR)
    store.create(draft("tone", 0.2, 0.8), AUTHOR, is_new_version=True)
    assert store.served("tone").version == 1
    assert store.ramp("tone", 40.0, AUTHOR).version == 1  # the running one, not the draft
    clock.advance(hours=1)
    second = store.start("tone", AUTHOR)
    assert (second.version, second.design.salt) == (2, "pepper")
    first = store.get("tone", 1)
    assert (first.status, first.why) == (Status.STOPPED, "version 2 took its place")
    assert first.stopped_at == clock.now
    assert store.served("tone").version == 2
    assert store.all() == [second]


def test_what_runs(store: ExperimentStore) -> None:
    store.create(draft("idle"), AUTHOR)
    for name in ("tone", "brevity", "over"):
        running(store, name)
    store.create(draft("tone", 0.2, 0.8), AUTHOR, is_new_version=True)
    store.stop("over", "", AUTHOR)
    assert store.running() == ["brevity", "tone"]


def test_subjects_keep_their_arms_where_shares_allow(store: ExperimentStore) -> None:
    store.create(draft("tone", 0.5, 0.5, salt="pepper"), AUTHOR)
    store.start("tone", AUTHOR)
    store.create(draft("tone", 0.6, 0.4), AUTHOR, is_new_version=True)
    before, after = store.get("tone", 1).split, store.get("tone", 2).split
    moved = [
        (before.assign(subject).arm, after.assign(subject).arm)
        for subject in map(str, range(2000))
        if before.assign(subject) != after.assign(subject)
    ]
    assert set(moved) == {("mixed", "control")}
    assert 0.07 < len(moved) / 2000 < 0.13


def test_a_salt_is_for_all_versions(store: ExperimentStore) -> None:
    store.create(draft(salt="pepper"), AUTHOR)
    with pytest.raises(FailedPreconditionError, match="has the salt 'pepper'"):
        store.create(draft(salt="other"), AUTHOR, is_new_version=True)


def test_one_arm_is_stopped(store: ExperimentStore, clock: Clock) -> None:
    running(store)
    halted = store.stop("tone", "too slow", AUTHOR, arm="mixed")
    assert halted.status is Status.RUNNING
    assert halted.halted == (Halt("mixed", clock.now, "too slow"),)
    assert store.get("tone") == halted
    assert store.stop("tone", "again", AUTHOR, arm="mixed").halted == halted.halted
    with pytest.raises(NotFoundError, match="no arm 'nosuch'"):
        store.stop("tone", "", AUTHOR, arm="nosuch")
    whole = store.stop("tone", "the control broke", AUTHOR, arm="control")
    assert (whole.status, whole.why) == (Status.STOPPED, "the control broke")


def test_promotion_and_its_undoing(store: ExperimentStore, database: Database) -> None:
    mixes = NamedMixStore(database)
    mixes.register("prod", MATH, AUTHOR)
    running(store)
    promoted = store.promote("tone", "mixed", "prod", AUTHOR)
    assert promoted.promotion == Promotion("mixed", "prod", MATH)
    assert (promoted.status, store.get("tone")) == (Status.PROMOTED, promoted)
    assert mixes.get("prod").mix == CODE
    assert promoted.stopped_at is not None
    undone = store.rollback("tone", AUTHOR)
    assert (undone.status, undone.promotion) == (Status.STOPPED, None)
    assert mixes.get("prod").mix == MATH
    assert verbs(database)[-2:] == ["experiments.promote", "experiments.rollback"]
    after = AuditLog(database).latest(2)[1].change.after
    assert after is not None
    assert after["promotion"]["before"] == MATH.canonical_json()


def test_an_arm_that_was_stopped_does_not_win(store: ExperimentStore, database: Database) -> None:
    running(store)
    store.stop("tone", "too slow", AUTHOR, arm="mixed")
    with pytest.raises(FailedPreconditionError, match=r"'mixed' of .* was stopped: too slow; prom"):
        store.promote("tone", "mixed", "prod", AUTHOR)
    assert NamedMixStore(database).all() == []
    store.stop("tone", "too many errors", AUTHOR, arm="control")
    assert store.promote("tone", "control", "prod", AUTHOR).status is Status.PROMOTED


def test_a_name_that_meant_nothing(store: ExperimentStore, database: Database) -> None:
    running(store)
    store.stop("tone", "enough", AUTHOR)
    store.promote("tone", "control", "prod", AUTHOR)
    assert NamedMixStore(database).get("prod").mix == MATH
    store.rollback("tone", AUTHOR)
    assert NamedMixStore(database).all() == []
    store.promote("tone", "mixed", "prod", AUTHOR)  # the other one, after all
    assert NamedMixStore(database).get("prod").mix == CODE


def test_what_came_after_a_promotion_is_not_undone(
    store: ExperimentStore, database: Database
) -> None:
    running(store)
    store.promote("tone", "mixed", "prod", AUTHOR)
    mixes = NamedMixStore(database)
    mixes.delete("prod", AUTHOR)
    with pytest.raises(FailedPreconditionError, match="no longer what the promotion made it"):
        store.rollback("tone", AUTHOR)
    mixes.register("prod", Mix.parse("law"), AUTHOR)
    with pytest.raises(FailedPreconditionError, match="no longer what the promotion made it"):
        store.rollback("tone", AUTHOR)
    assert store.get("tone").status is Status.PROMOTED
    assert mixes.get("prod").mix == Mix.parse("law")


@pytest.mark.parametrize("step", ["promote", "rollback"])
def test_a_promotion_that_cannot_be_audited_is_not_made(
    store: ExperimentStore, database: Database, tmp_path: Path, step: str
) -> None:
    running(store)
    if step == "rollback":
        store.promote("tone", "mixed", "prod", AUTHOR)
    before, mixes = store.get("tone"), NamedMixStore(database).all()
    raw = sqlite3.connect(tmp_path / connection.FILENAME)
    with raw:
        raw.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    raw.close()
    steps = {
        "promote": lambda: store.promote("tone", "mixed", "prod", AUTHOR),
        "rollback": lambda: store.rollback("tone", AUTHOR),
    }
    with pytest.raises(IntegrityError):
        steps[step]()
    assert (store.get("tone"), NamedMixStore(database).all()) == (before, mixes)


@pytest.mark.parametrize("call", ["get", "start", "ramp", "stop", "promote", "rollback", "served"])
def test_unknown_names_and_versions(store: ExperimentStore, call: str) -> None:
    arguments: dict[str, tuple[Any, ...]] = {
        "ramp": (1.0, AUTHOR),
        "stop": ("", AUTHOR),
        "promote": ("mixed", "prod", AUTHOR),
        "get": (),
        "served": (),
    }
    with pytest.raises(NotFoundError, match="no experiment is named 'nosuch'"):
        getattr(store, call)("nosuch", *arguments.get(call, (AUTHOR,)))


def test_unknown_versions(store: ExperimentStore) -> None:
    store.create(draft(), AUTHOR)
    with pytest.raises(NotFoundError, match="'tone@2'"):
        store.get("tone", 2)
    with pytest.raises(NotFoundError, match="'tone@2'"):
        store.start("tone", AUTHOR, version=2)


def test_a_refused_step_changes_nothing(store: ExperimentStore, database: Database) -> None:
    running(store)
    before = store.get("tone")
    refused = (
        lambda: store.start("tone", AUTHOR),
        lambda: store.ramp("tone", 101.0, AUTHOR),
        lambda: store.rollback("tone", AUTHOR),
        lambda: store.promote("tone", "nosuch", "prod", AUTHOR),
        lambda: store.promote("tone", "mixed", "Not A Name", AUTHOR),
    )
    for step in refused:
        with pytest.raises((ServingError, InvalidMixError)):
            step()
    assert store.get("tone") == before
    assert verbs(database) == ["experiments.create", "experiments.start"]
    assert NamedMixStore(database).all() == []


def test_a_check_comes_before_the_change(store: ExperimentStore) -> None:
    def refuse(experiment: object) -> None:
        raise InvalidRequestError("mine")

    store.create(draft(), AUTHOR)
    for step in (
        lambda: store.start("tone", AUTHOR, check=refuse),
        lambda: store.ramp("tone", 1.0, AUTHOR, check=refuse),
        lambda: store.create(draft("tone", 0.6, 0.4), AUTHOR, is_new_version=True, check=refuse),
        lambda: store.get("tone", check=refuse),
    ):
        with pytest.raises(InvalidRequestError, match="mine"):
            step()
    assert store.get("tone") == store.create(draft(), AUTHOR)


@pytest.mark.parametrize("column", ["design", "digest"])
def test_a_tampered_version_is_refused(store: ExperimentStore, tmp_path: Path, column: str) -> None:
    running(store)
    raw = sqlite3.connect(tmp_path / connection.FILENAME)
    with raw:
        raw.execute(f"UPDATE experiments SET {column} = replace({column}, '5', '4')")
    raw.close()
    for read in (
        lambda: store.get("tone"),
        lambda: store.served("tone"),
        lambda: store.stop("tone", "", AUTHOR),
        lambda: store.promote("tone", "mixed", "prod", AUTHOR),
    ):
        with pytest.raises(FailedPreconditionError, match="tone@1 was changed behind"):
            read()


def test_a_tampered_version_is_no_other_one_s_trouble(
    store: ExperimentStore, tmp_path: Path
) -> None:
    running(store)
    store.create(draft("tone", 0.2, 0.8), AUTHOR, is_new_version=True)
    second = store.start("tone", AUTHOR)
    raw = sqlite3.connect(tmp_path / connection.FILENAME)
    with raw:
        raw.execute("UPDATE experiments SET digest = 'x' WHERE version = 1")
    raw.close()
    assert store.served("tone") == second
    assert store.stop("tone", "enough", AUTHOR).version == 2


def test_a_tampered_version_hides_no_other_experiment(
    store: ExperimentStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    running(store)
    other = store.create(draft("other"), AUTHOR)
    raw = sqlite3.connect(tmp_path / connection.FILENAME)
    with raw:
        raw.execute("UPDATE experiments SET digest = 'x' WHERE name = 'tone'")
    raw.close()
    assert store.all() == [other]
    assert "tone@1 was changed behind the server's back" in caplog.text


def test_a_clock_that_was_set_back(store: ExperimentStore, clock: Clock) -> None:
    running(store)
    started_at = clock.now
    clock.advance(hours=-5)
    assert store.stop("tone", "", AUTHOR).stopped_at == started_at
