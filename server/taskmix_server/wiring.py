"""Every part of a server, built and joined."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Self

from taskmix_composer.bank.reader import Bank
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.identity import DigestCache
from taskmix_server.database import Database
from taskmix_server.engine.vllm.engine import VllmEngine
from taskmix_server.experiments.recording import RecordStore
from taskmix_server.experiments.store import ExperimentStore
from taskmix_server.rest.server import HttpEdge
from taskmix_server.rpc.server import GrpcEdge
from taskmix_server.runtime.admission.admission import Admission
from taskmix_server.runtime.admission.costs import TokenCosts
from taskmix_server.runtime.certificates import CertificateFiles
from taskmix_server.runtime.changes import MAX_WAIT_S, Changes
from taskmix_server.runtime.experiments.guardrails import Guardrails
from taskmix_server.runtime.experiments.running import Experiments
from taskmix_server.runtime.experiments.shadows import Shadows
from taskmix_server.runtime.experiments.tidying import Tidying
from taskmix_server.runtime.liveness import Liveness
from taskmix_server.runtime.loads import TaskLoads
from taskmix_server.runtime.mixes import NamedMixStore
from taskmix_server.runtime.recipes import RecipeExpander
from taskmix_server.runtime.state import ServerState
from taskmix_server.runtime.supervisor import EngineSupervisor
from taskmix_server.runtime.tasks import TaskRegistry
from taskmix_server.runtime.variants import VariantCache
from taskmix_server.services.access import AccessService
from taskmix_server.services.bank import BankService
from taskmix_server.services.drafts import Mixes
from taskmix_server.services.experiments import ExperimentService
from taskmix_server.services.inference import InferenceService
from taskmix_server.services.services import Services
from taskmix_server.services.targets import Targets
from taskmix_server.services.tenants import TenantService
from taskmix_server.settings import Settings
from taskmix_server.telemetry.metrics import Metrics
from taskmix_server.telemetry.reporting import Reporter
from taskmix_server.tenancy.audit import AuditLog
from taskmix_server.tenancy.authenticator import Authenticator
from taskmix_server.tenancy.rules import METRICS
from taskmix_server.tenancy.store import TenantStore

logger = logging.getLogger(__name__)

CLOSE_S = 2.0  # for the last bytes of answers that are complete


@dataclass(frozen=True, slots=True)
class Kept:
    """What the server finds in files. Without a certificate both edges speak plain text."""

    database: Database
    authenticator: Authenticator
    certificate: CertificateFiles | None

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Refuses what would let anybody in unasked."""
        access = settings.access
        database = Database.at(settings.state)
        authenticator = Authenticator(TenantStore(database))
        access.check_host(settings.host, is_open=authenticator.is_open)
        certificate = None
        if access.tls_cert is not None and access.tls_key is not None:
            certificate = CertificateFiles(access.tls_cert, access.tls_key)
        return cls(database, authenticator, certificate)


@dataclass(frozen=True, slots=True)
class Server:
    """What has been started and must be ended, in reverse."""

    engine: VllmEngine
    inference: InferenceService
    database: Database
    grpc: GrpcEdge
    http: HttpEdge
    supervisor: EngineSupervisor
    experiments: Experiments
    loops: tuple[Callable[[], Coroutine[None, None, None]], ...]

    async def drain(self, grace_s: float) -> None:
        """Answer new requests with a refusal while those in flight end; then close both edges."""
        await self.grpc.set_serving(is_serving=False)
        await self.inference.state.drain(grace_s)
        await asyncio.gather(self.grpc.stop(CLOSE_S), self.http.stop(CLOSE_S))

    async def close(self) -> None:
        """End what no request can reach any more."""
        await self.engine.close()
        await self.experiments.close()
        self.database.close()


@dataclass(frozen=True, slots=True)
class _Shared:
    """What several services use."""

    tasks: TaskRegistry
    variants: VariantCache
    recipes: RecipeExpander
    mixes: NamedMixStore
    audit: AuditLog
    store: ExperimentStore
    records: RecordStore
    experiments: Experiments


def checked_bank(settings: Settings) -> Bank:
    """The bank, after its base was found to be the one being served."""
    bank = Bank.open(settings.engine.bank)
    cache = settings.engine.digest_cache
    bank.check_base(Checkpoint.open(settings.engine.base), DigestCache(cache) if cache else None)
    return bank


async def wire(
    settings: Settings, bank: Bank, engine: VllmEngine, kept: Kept, reporter: Reporter
) -> Server:
    """Join a server over a running engine, with every task of the bank served."""
    metrics = reporter.metrics
    shared = _shared(settings, bank, engine, kept.database, metrics)
    await _offer_all(bank, shared.tasks)
    shadows = Shadows(engine, shared.variants, shared.experiments, metrics.record_shadow)
    inference = InferenceService(
        engine,
        shared.variants,
        Targets(shared.recipes, shared.mixes, shared.experiments),
        ServerState(),
        reporter.report,
        _admission(settings, engine, kept, metrics),
        TokenCosts.over(Checkpoint.open(settings.engine.base), shared.tasks),
        shadows,
    )
    _measure(inference, shared.tasks, metrics)
    services = _services(settings, inference, shared, kept, metrics)
    http = await HttpEdge.create(engine, services, settings.engine.model_name, kept.certificate)
    supervisor = EngineSupervisor(
        engine,
        inference.state,
        (shared.variants.forget_all, shared.tasks.restore, http.follow_engine),
        metrics.record_engine_restart,
    )
    guardrails = Guardrails(
        kept.database,
        shared.store,
        shared.experiments,
        tell_check=metrics.record_guardrail_check,
        tell_stop=metrics.record_guardrail_stop,
    )
    return Server(
        engine,
        inference,
        kept.database,
        GrpcEdge(services, kept.certificate),
        http,
        supervisor,
        shared.experiments,
        (
            guardrails.run,
            shadows.run,
            Tidying(kept.database).run,
            Liveness(engine, settings.engine_timeout_s).run,
        ),
    )


def _shared(
    settings: Settings, bank: Bank, engine: VllmEngine, database: Database, metrics: Metrics
) -> _Shared:
    tasks = TaskRegistry(bank, engine, settings.task_bytes)
    tasks.residency.after_load = metrics.record_task_load
    tasks.residency.after_eviction = metrics.record_task_eviction
    store, records = ExperimentStore(database), RecordStore(database)
    return _Shared(
        tasks,
        VariantCache(tasks, engine),
        RecipeExpander(tasks),
        NamedMixStore(database),
        AuditLog(database),
        store,
        records,
        Experiments(store, records, tell_dropped=metrics.record_experiment_drops),
    )


async def _offer_all(bank: Bank, tasks: TaskRegistry) -> None:
    for name in bank.entries:
        started_s = time.monotonic()
        offered = await tasks.offer(name)
        took_s = time.monotonic() - started_s
        logger.info("task %s is %s after %.2f s", name, offered.state.value, took_s)


def _admission(settings: Settings, engine: VllmEngine, kept: Kept, metrics: Metrics) -> Admission:
    """The line in front of the engine, which moves as the engine reports."""
    admission = Admission(
        settings.engine.max_num_seqs,
        settings.max_queued,
        is_shared=not kept.authenticator.is_open,
    )
    engine.watch_load(lambda load: admission.line.end(load.finished))
    engine.watch_load(
        lambda load: metrics.record_load(load.num_running, load.num_waiting, load.used_kv_blocks)
    )
    return admission


def _measure(inference: InferenceService, tasks: TaskRegistry, metrics: Metrics) -> None:
    """What `/metrics` reads when it is asked."""
    metrics.read_at_scrape(
        {
            # Read now: a caller that gives up in the line brings about no step of the engine.
            "waiting": lambda: metrics.num_queued + inference.admission.num_waiting,
            "task_references": lambda: tasks.num_references,
            "resident_bytes": lambda: tasks.resident_bytes,
            "ready_variants": lambda: len(inference.variants),
            "engine_up": lambda: inference.is_engine_up,
        },
        by_label={
            "task_bytes": lambda: {task.name: task.resident_bytes for task in tasks.statuses()},
            "tenant_waiting": inference.admission.waiting_by_tenant,
        },
        delta_memory=lambda figure: getattr(tasks.memory.last, figure),
    )


def _services(
    settings: Settings, inference: InferenceService, shared: _Shared, kept: Kept, metrics: Metrics
) -> Services:
    bank = BankService(
        shared.tasks,
        shared.variants,
        shared.recipes,
        shared.mixes,
        shared.audit,
        Changes(),  # loads take the time that they take
        TaskLoads(shared.tasks),
    )
    experiments = ExperimentService(
        kept.database,
        shared.store,
        shared.records,
        shared.experiments,
        Mixes(shared.variants, shared.recipes, shared.mixes),
        Changes(MAX_WAIT_S),
    )
    tenants = TenantService(
        TenantStore(kept.database), shared.audit, kept.authenticator, Changes(MAX_WAIT_S)
    )
    open_routes = (METRICS,) if settings.access.metrics_open else ()
    return Services(
        AccessService(kept.authenticator, open_routes, metrics.record_denial),
        inference,
        bank,
        tenants,
        experiments,
    )
