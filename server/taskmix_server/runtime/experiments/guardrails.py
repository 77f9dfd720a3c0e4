"""The loop that holds running experiments against their rules, and stops what breaks one."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from taskmix_server.database import Database
from taskmix_server.errors import FailedPreconditionError
from taskmix_server.experiments.evidence import Breach, breaches
from taskmix_server.experiments.experiment import Experiment, Status
from taskmix_server.experiments.guardrail import Rule
from taskmix_server.experiments.store import Check, ExperimentStore, Now, utc_now
from taskmix_server.runtime.experiments.running import Experiments
from taskmix_server.telemetry.outcomes import FAILED, OK
from taskmix_server.tenancy.audit import Author

logger = logging.getLogger(__name__)

INTERVAL_S = 5.0
STEP = timedelta(seconds=30)
"""Between the starts of two windows; each is looked at for twice as long."""

HORIZON = timedelta(days=28)
NUM_WINDOWS = HORIZON // STEP

NUM_YOUNG = 10
"""Steps in which the whole record is short, and looked at every time."""

AUTHOR = Author("guardrail", "", "")


class Guardrails:
    """Stops arms that break a rule. One event loop only.

    A rule looks at the whole record, and at windows that begin every `STEP` where it is about what
    requests left, so that a long good record does not hide what happens now. Half of its alpha is
    for the record, the other half is shared out among the windows of `HORIZON` (Bonferroni): over
    that time, an arm that keeps the rule is stopped with a chance of alpha at most.

    tell_check: told `ok` or `failed` for each experiment. tell_stop: told the label of each arm
    that was stopped.
    """

    def __init__(
        self,
        database: Database,
        store: ExperimentStore,
        running: Experiments,
        *,
        tell_check: Callable[[str], None] = lambda _: None,
        tell_stop: Callable[[str], None] = lambda _: None,
        now: Now = utc_now,
    ) -> None:
        self._database = database
        self._store = store
        self._running = running
        self._tell_check = tell_check
        self._tell_stop = tell_stop
        self._now = now
        self._steps: dict[int, int] = {}  # by experiment: when its whole record was looked at

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self.check()

    async def check(self) -> None:
        """Look at every running experiment once; what fails for one is tried again next time."""
        names: list[str] = []
        try:
            await self._running.flush()
            names = await asyncio.to_thread(self._store.running)
        except Exception:  # the edge of a loop that must outlive whatever fails in it
            logger.exception("experiments cannot be held against their rules")
            self._tell_check(FAILED)
        for name in names:
            await self._check_one(name)

    async def _check_one(self, name: str) -> None:
        try:
            experiment = await asyncio.to_thread(self._store.served, name)
            for breach in await asyncio.to_thread(self._breaches, experiment):
                after = await self._stop(experiment, breach)
                if after.status is not Status.RUNNING:  # it was the control
                    break
        except Exception:  # the edge of a loop that must outlive whatever fails in it
            logger.exception("experiment %s cannot be held against its rules", name)
            self._tell_check(FAILED)
        else:
            self._tell_check(OK)

    async def _stop(self, experiment: Experiment, breach: Breach) -> Experiment:
        """Stop an arm, and let that be known before anything else is done."""
        after = await asyncio.to_thread(
            self._store.stop,
            experiment.name,
            breach.why,
            AUTHOR,
            arm=breach.arm,
            check=_same_as(experiment),
        )
        self._running.forget()
        label = f"{experiment.label}/{breach.arm}"
        self._tell_stop(label)
        logger.warning("stopped %s: %s", label, breach.why)
        return after

    def _breaches(self, experiment: Experiment) -> list[Breach]:
        """What is found in the windows that are open and, once a step at least, in all there is.

        Blocks.
        """
        rules = experiment.design.guardrails
        started_at = experiment.started_at
        if not rules or started_at is None:
            return []
        found: dict[str, Breach] = {}
        step = (self._now() - started_at) // STEP
        recent = [stricter(rule, NUM_WINDOWS) for rule in rules if _is_recent(rule)]
        for start in (step, step - 1):
            if recent and start > 0:
                self._look(experiment, recent, started_at + start * STEP, found)
        if step < NUM_YOUNG or self._steps.get(experiment.id) != step:
            self._look(experiment, [stricter(rule, 1) for rule in rules], None, found)
            self._steps[experiment.id] = step
        return [found[arm.name] for arm in experiment.design.arms if arm.name in found]

    def _look(
        self,
        experiment: Experiment,
        rules: list[Rule],
        since: datetime | None,
        found: dict[str, Breach],
    ) -> None:
        """Add the breaches of rules to what is found, each arm's first one."""
        held = replace(experiment, design=replace(experiment.design, guardrails=tuple(rules)))
        for breach in breaches(self._database, held, since):
            found.setdefault(breach.arm, breach)


def _is_recent(rule: Rule) -> bool:
    """Whether a rule can be held against a part of the record alone."""
    return rule.quantile is not None or rule.metric == "error_rate"


def stricter(rule: Rule, num_looks: int) -> Rule:
    """A rule with one of so many parts of half its alpha: 1 for the record, or `NUM_WINDOWS`."""
    return replace(rule, alpha=rule.alpha / (2 * num_looks))


def _same_as(experiment: Experiment) -> Check:
    """Refuses to stop an arm of another version than the one whose record was looked at."""

    def check(running: Experiment) -> None:
        if running.id != experiment.id:
            raise FailedPreconditionError(
                f"{running.label} has taken the place of {experiment.label}; it is looked at next"
            )

    return check
