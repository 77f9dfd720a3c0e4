"""Administration of experiments, and what callers report of them."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from taskmix_server.database import Database
from taskmix_server.errors import NotFoundError, PermissionDeniedError
from taskmix_server.experiments.experiment import Experiment, Step
from taskmix_server.experiments.outcome import Outcome
from taskmix_server.experiments.recording import Recorded, RecordStore
from taskmix_server.experiments.results import ALPHA, Results, results
from taskmix_server.experiments.rights import changed_by, exists_for, seen_by
from taskmix_server.experiments.store import ExperimentStore
from taskmix_server.runtime.changes import Changes
from taskmix_server.runtime.experiments.running import Experiments
from taskmix_server.services.drafts import Draft, Mixes
from taskmix_server.tenancy.principal import Principal
from taskmix_server.tenancy.tenant import Verb

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class ExperimentService:
    """The verbs on experiments. What is not for a caller does not exist for it.

    patience_s: how long an outcome of something unknown waits for another server to write it down.
    """

    database: Database
    store: ExperimentStore
    records: RecordStore
    running: Experiments
    mixes: Mixes
    changes: Changes
    patience_s: float = 1.0

    async def create(
        self, principal: Principal, draft: Draft, request_id: str, *, is_new_version: bool = False
    ) -> Experiment:
        """Make a draft of mixes that can be served now, pinned to the content they have now."""
        principal.check_verb(Verb.CREATE_EXPERIMENT)
        if not principal.may_name_mix(draft.name):
            raise PermissionDeniedError(
                f"tenant {principal.name!r} may not name an experiment {draft.name!r:.80}; ask an "
                "admin which names are its own"
            )
        wanted = Experiment(await self.mixes.designed(principal, draft), ramp=draft.ramp)
        author = principal.author(request_id)
        return await self._change(
            lambda: self.store.create(
                wanted, author, is_new_version=is_new_version, check=changed_by(principal)
            )
        )

    async def get(self, principal: Principal, name: str, version: int | None = None) -> Experiment:
        return await asyncio.to_thread(self.store.get, name, version, seen_by(principal))

    async def all(self, principal: Principal) -> list[Experiment]:
        known = await asyncio.to_thread(self.store.all)
        return [experiment for experiment in known if exists_for(experiment, principal)]

    async def start(self, principal: Principal, name: str, request_id: str) -> Experiment:
        """Start a draft whose mixes still mean what they meant when it was made."""
        principal.check_verb(Verb.START_EXPERIMENT)
        author, check = principal.author(request_id), changed_by(principal)
        draft = await asyncio.to_thread(self.store.chosen, name, Step.START, None, check)
        for arm in draft.design.pinned:
            self.mixes.check_pinned(principal, arm)
        return await self._change(
            lambda: self.store.start(name, author, version=draft.version, check=check)
        )

    async def ramp(
        self,
        principal: Principal,
        name: str,
        percent: float,
        request_id: str,
        version: int | None = None,
    ) -> Experiment:
        principal.check_verb(Verb.RAMP_EXPERIMENT)
        author, check = principal.author(request_id), changed_by(principal)
        return await self._change(
            lambda: self.store.ramp(name, percent, author, version=version, check=check)
        )

    async def stop(
        self, principal: Principal, name: str, request_id: str, *, arm: str = "", why: str = ""
    ) -> Experiment:
        principal.check_verb(Verb.STOP_EXPERIMENT)
        author, check = principal.author(request_id), changed_by(principal)
        said = why or f"{principal.name} stopped it"
        return await self._change(lambda: self.store.stop(name, said, author, arm=arm, check=check))

    async def promote(
        self,
        principal: Principal,
        name: str,
        winner: tuple[str, str],
        request_id: str,
        version: int | None = None,
    ) -> Experiment:
        """Let a name mean an arm's mix. winner: the arm, and the name."""
        principal.check_verb(Verb.PROMOTE_EXPERIMENT)
        arm, mix_name = winner
        author, check = principal.author(request_id), changed_by(principal)
        await self._check_may_name(principal, mix_name)
        won = await asyncio.to_thread(self.store.chosen, name, Step.PROMOTE, version, check)
        self.mixes.check_pinned(principal, won.design.arm(arm))
        return await self._change(
            lambda: self.store.promote(
                name, arm, mix_name, author, version=won.version, check=check
            )
        )

    async def rollback(
        self, principal: Principal, name: str, request_id: str, version: int | None = None
    ) -> Experiment:
        principal.check_verb(Verb.ROLL_BACK_EXPERIMENT)
        author, check = principal.author(request_id), changed_by(principal)
        return await self._change(
            lambda: self.store.rollback(name, author, version=version, check=check)
        )

    async def record(
        self, principal: Principal, name: str, outcomes: Sequence[Outcome]
    ) -> Recorded:
        """Keep outcomes, all or none; an admin's may be of any tenant's subjects."""
        principal.check_verb(Verb.RECORD_OUTCOMES)
        await self.get(principal, name)
        tenant_id = None if principal.tenant.is_admin else principal.tenant.id
        await self.running.flush()
        try:
            return await asyncio.to_thread(self.records.record, name, outcomes, tenant_id)
        except NotFoundError:
            # The answer may have come a moment before its request was written down, here or there.
            await asyncio.sleep(self.patience_s)
            await self.running.flush()
        return await asyncio.to_thread(self.records.record, name, outcomes, tenant_id)

    async def results(
        self,
        principal: Principal,
        name: str,
        version: int | None = None,
        ratios: Sequence[str] = (),
        alpha: float = ALPHA,
    ) -> Results:
        """What a version tells: the running one, else the newest that ran."""
        principal.check_verb(Verb.READ_RESULTS)
        await self.running.flush()

        def computed() -> Results:
            found = self.store.served(name) if version is None else self.store.get(name, version)
            seen_by(principal)(found)
            return results(self.database, found, ratios, alpha)

        return await asyncio.to_thread(computed)

    async def _change(self, change: Callable[[], ResultT]) -> ResultT:
        """Make a change to its end, also for a caller that has left, and serve by it at once."""

        async def whole() -> ResultT:
            try:
                return await asyncio.to_thread(change)
            finally:
                self.running.forget()

        return await self.changes.run(whole)

    async def _check_may_name(self, principal: Principal, mix_name: str) -> None:
        """Refuse a name that is not the caller's, or that means what it must not see."""
        named = await asyncio.to_thread(self.mixes.named.find, mix_name)
        is_hidden = named is not None and not principal.may_use_mix(mix_name, named.mix)
        if is_hidden or not principal.may_name_mix(mix_name):
            raise PermissionDeniedError(
                f"tenant {principal.name!r} may not name a mix {mix_name!r:.80}; ask an admin "
                "which names are its own"
            )
