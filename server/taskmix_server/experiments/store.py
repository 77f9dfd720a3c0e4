"""Experiments in the database; every change with its line in the audit log."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from taskmix_composer.mix import check_name
from taskmix_server.database import Database
from taskmix_server.database.models import ExperimentRow
from taskmix_server.errors import AlreadyExistsError, NotFoundError
from taskmix_server.experiments.experiment import Experiment, Promotion, Status, Step
from taskmix_server.experiments.naming import check_meaning, let_mean, meaning
from taskmix_server.experiments.rows import experiment_of, fill, state_of
from taskmix_server.experiments.versions import find, locked, newest_of_each, pick
from taskmix_server.tenancy import audit
from taskmix_server.tenancy.audit import Author, Change

Now = Callable[[], datetime]

Check = Callable[[Experiment], None]
"""Raises if an experiment does not exist for a caller, or may not be changed by it."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def unchecked(experiment: Experiment) -> None:
    """Lets everything pass: for the server's own needs."""


class ExperimentStore:
    """The table of experiments. Calls block; run them off the event loop.

    Where no version is named, a step is taken by the running one if it can, else by the newest one
    that can.
    """

    def __init__(self, database: Database, now: Now = utc_now) -> None:
        self._database = database
        self._now = now

    def create(
        self,
        wanted: Experiment,
        author: Author,
        *,
        is_new_version: bool = False,
        check: Check = unchecked,
    ) -> Experiment:
        """Add a draft; repeating it is harmless.

        is_new_version: of an experiment that exists, whose salt it keeps; it replaces a draft.
        Without it, other content under the name is AlreadyExistsError.
        """
        with self._database.writing() as session:
            known = locked(session, wanted.name)
            if not known:
                return self._add(session, replace(wanted, version=1), author)
            newest = experiment_of(known[0])
            if not is_new_version:
                return _same(newest, wanted, check)
            check(newest)
            wanted = replace(wanted, design=wanted.design.following(newest.design))
            if newest.status is Status.DRAFT:
                return _replace(session, known[0], wanted, author)
            return self._add(session, replace(wanted, version=newest.version + 1), author)

    def get(self, name: str, version: int | None = None, check: Check = unchecked) -> Experiment:
        """A version, the newest one if none is named; or NotFoundError."""
        with self._database.reading() as session:
            found = experiment_of(find(session, name, version)[0])
        check(found)
        return found

    def served(self, name: str) -> Experiment:
        """The version that answers requests: the running one, else the newest that ever ran."""
        with self._database.reading() as session:
            rows = find(session, name)
            ran = [row for row in rows if row.status != Status.DRAFT]
            running = [row for row in ran if row.status == Status.RUNNING]
            return experiment_of(next(iter(running or ran or rows)))

    def chosen(
        self, name: str, step: Step, version: int | None = None, check: Check = unchecked
    ) -> Experiment:
        """The version that would take a step, which it may take."""
        with self._database.reading() as session:
            _, found = pick(session, name, version, step)
        check(found)
        found.after(step)
        return found

    def running(self) -> list[str]:
        """The names of experiments that run, whatever their newest version is."""
        query = select(ExperimentRow.name).where(ExperimentRow.status == Status.RUNNING)
        with self._database.reading() as session:
            return list(session.scalars(query.order_by(ExperimentRow.name)))

    def all(self) -> list[Experiment]:
        """The newest version of each experiment, by name; without those that were tampered with."""
        with self._database.reading() as session:
            return newest_of_each(session)

    def start(
        self, name: str, author: Author, *, version: int | None = None, check: Check = unchecked
    ) -> Experiment:
        """Let a draft take requests. The version that ran until now stops in its favour."""
        with self._database.writing() as session:
            row, draft = pick(session, name, version, Step.START)
            check(draft)
            started = draft.started(self._now())
            for other in locked(session, name):
                if other.status == Status.RUNNING:
                    before = experiment_of(other)
                    after = before.stopped(self._now(), f"version {started.version} took its place")
                    _write(session, other, before, after, Step.STOP, author)
            return _write(session, row, draft, started, Step.START, author)

    def ramp(
        self,
        name: str,
        percent: float,
        author: Author,
        *,
        version: int | None = None,
        check: Check = unchecked,
    ) -> Experiment:
        """Let another share of the subjects take part; who took part stays when it grows."""
        with self._database.writing() as session:
            row, before = pick(session, name, version, Step.RAMP)
            check(before)
            return _write(session, row, before, before.ramped(percent), Step.RAMP, author)

    def stop(
        self, name: str, why: str, author: Author, *, arm: str = "", check: Check = unchecked
    ) -> Experiment:
        """End the running version, or one arm of it."""
        with self._database.writing() as session:
            row, before = pick(session, name, None, Step.STOP)
            check(before)
            after = (
                before.halting(before.design.arm(arm), self._now(), why)
                if arm
                else before.stopped(self._now(), why)
            )
            return _write(session, row, before, after, Step.STOP, author)

    def promote(
        self,
        name: str,
        arm: str,
        mix_name: str,
        author: Author,
        *,
        version: int | None = None,
        check: Check = unchecked,
    ) -> Experiment:
        """Give an arm's mix a name, and remember what the name meant: one transaction."""
        check_name(mix_name)
        with self._database.writing() as session:
            row, before = pick(session, name, version, Step.PROMOTE)
            check(before)
            winner = before.design.arm(arm)
            promotion = Promotion(winner.name, mix_name, meaning(session, mix_name))
            after = before.promoted(promotion, self._now())
            let_mean(session, mix_name, winner.mix)
            return _write(session, row, before, after, Step.PROMOTE, author)

    def rollback(
        self, name: str, author: Author, *, version: int | None = None, check: Check = unchecked
    ) -> Experiment:
        """Let the promoted name mean again what it meant before."""
        with self._database.writing() as session:
            row, before = pick(session, name, version, Step.ROLLBACK)
            check(before)
            after = before.rolled_back()
            assert before.promotion is not None, "a promoted version remembers its promotion"
            promotion = before.promotion
            check_meaning(session, promotion.mix_name, before.design.arm(promotion.arm).mix)
            let_mean(session, promotion.mix_name, promotion.before)
            return _write(session, row, before, after, Step.ROLLBACK, author)

    def _add(self, session: Session, wanted: Experiment, author: Author) -> Experiment:
        added = replace(wanted, created_at=self._now())
        row = ExperimentRow(name=added.name, version=added.version)
        fill(row, added)
        session.add(row)
        session.flush()
        audit.record(
            session, author, Change("experiments.create", added.name, None, state_of(added))
        )
        return replace(added, id=row.id)


def _same(known: Experiment, wanted: Experiment, check: Check) -> Experiment:
    """What is there, if it is what is wanted.

    The ramp of a version that runs or ran has a life of its own, and is not compared.
    """
    try:
        check(known)
        is_same = known.design == wanted.design
    except NotFoundError:
        is_same = False
    if is_same and known.status is Status.DRAFT and known.ramp != wanted.ramp:
        raise AlreadyExistsError(
            f"experiment {known.name!r} is a draft of the same design with a ramp of "
            f"{known.ramp:g} %, not {wanted.ramp:g} %; change it with `taskmix experiments ramp "
            f"{known.name} {wanted.ramp:g}`"
        )
    if is_same:
        return known
    raise AlreadyExistsError(
        f"experiment {known.name!r} exists; add `--new-version` to change its arms, or choose "
        "another name"
    )


def _replace(
    session: Session, row: ExperimentRow, wanted: Experiment, author: Author
) -> Experiment:
    before = experiment_of(row)
    after = replace(before, design=wanted.design, ramp=wanted.ramp)
    return _write(session, row, before, after, Step.REPLACE, author)


def _write(
    session: Session,
    row: ExperimentRow,
    before: Experiment,
    after: Experiment,
    step: Step,
    author: Author,
) -> Experiment:
    """Make a step and write it down, in one transaction; what changes nothing is no step."""
    if after == before:
        return before
    fill(row, after)
    change = Change(f"experiments.{step}", after.name, state_of(before), state_of(after))
    audit.record(session, author, change)
    return after
